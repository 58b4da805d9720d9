"""Which stack accesses a compiler left in a kernel's product loops, counted in the assembly that it printed."""

from __future__ import annotations

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.?L\w+):")
_TARGET = re.compile(r"\s(?:j\w+|b(?:\.\w+)?|cbn?z|tbn?z)\s.*?(\.?L\w+)\s*$")
_MULTIPLY_ADD = re.compile(r"\s(?:vfn?m(?:add|sub)\w*ps|fmla|fmls)\s")
_VECTOR_REGISTER = re.compile(r"%[xyz]mm\d+|\b[qv]\d+\b")
_STACK = re.compile(r"\(%rsp\b|\[sp\b")
_STACK_AND_FRAME = re.compile(r"\(%r[sb]p\b|\[(?:sp|x29)\b")
_STORE = re.compile(r"^\tst\w*\s|,\s*-?\w*\([^)]*\)\s*$")
# Without this, LLVM uses the frame pointer as one more register for addresses.
_HAS_FRAME_POINTER = re.compile(r"\smovq\s+%rsp, %rbp|\s(?:mov|add)\s+x29, sp\b")


@dataclass(frozen=True)
class ProductLoop:
    """An innermost loop that multiplies and adds vectors.

    Attributes:
        label: where it begins.
        multiply_adds: instructions of it that multiply and add.
        stack_accesses: instructions of it that name a vector register and an address on the stack.
        stack_stores: those of them that write.
    """

    label: str
    multiply_adds: int
    stack_accesses: int
    stack_stores: int


def product_loops(assembly: str) -> list[ProductLoop]:
    """The product loops of `assembly`, of x86-64 in AT&T's syntax or of AArch64, in their order."""
    lines = [line for line in assembly.splitlines() if _LABEL.match(line) or line.startswith("\t")]
    stack = _STACK_AND_FRAME if _HAS_FRAME_POINTER.search(assembly) else _STACK
    loops = (_loop(lines[begin : end + 1], stack) for begin, end in _innermost(lines))
    return [loop for loop in loops if loop.multiply_adds]


def _innermost(lines: list[str]) -> list[tuple[int, int]]:
    """From a label to the last jump back to it, where no other such pair lies between."""
    labels: dict[str, int] = {}
    ends: dict[int, int] = {}
    for number, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = number
        elif (target := _TARGET.search(line)) and target[1] in labels:
            ends[labels[target[1]]] = number
    spans = sorted(ends.items())
    return [(b, e) for b, e in spans if not any(b < begin and end <= e for begin, end in spans)]


def _loop(lines: list[str], stack: re.Pattern[str]) -> ProductLoop:
    on_stack = [line for line in lines if stack.search(line) and _VECTOR_REGISTER.search(line)]
    multiply_adds = sum(bool(_MULTIPLY_ADD.search(line)) for line in lines)
    stores = sum(bool(_STORE.search(line)) for line in on_stack)
    return ProductLoop(lines[0].split(":")[0], multiply_adds, len(on_stack), stores)
