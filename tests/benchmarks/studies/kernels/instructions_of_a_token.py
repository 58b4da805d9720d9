"""What a token costs in instructions by two exact kernels of TRELLIS.

    python -m tests.benchmarks.studies.kernels.instructions_of_a_token

No GPU is needed: Triton compiles for sm_90, and loops are read in the assembly, where a branch goes back. A walk has
one loop, over tokens; forward substitution has one over tiles, and in it one over their tokens. D = M = 64, bfloat16.
"""

from __future__ import annotations

import argparse
import re

from codegen.backends import backend
from codegen.device import named
from codegen.kernels.build import parts
from codegen.render import render
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Problem, Spec

SPEC, DEVICE = Spec(Rule(), Problem(chunk=1, dtype="bfloat16")), named("sm_90")

_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);")
_BRANCH = re.compile(r"\bBRA\b.*\b0x([0-9a-f]+)")


def loops(assembly: str) -> list[list[str]]:
    """The instructions of each loop, the loops in the order of their ends."""
    lines = [(int(found[1], 16), found[2]) for found in map(_INSTRUCTION.match, assembly.splitlines()) if found]
    made = []
    for end, text in lines:
        back = _BRANCH.search(text)
        if back is not None and int(back[1], 16) < end:
            made.append([each for place, each in lines if int(back[1], 16) <= place <= end])
    return made


def per_token(kernel: str, assembly: str, tile: int) -> tuple[float, float]:
    """Instructions and barriers of one token; the second memory's program has loops of its own, as long."""
    first, *others = loops(assembly)
    counts = []
    for word in ("", "BAR.SYNC"):
        inner = sum(word in text for text in first)
        outer = sum(word in text for text in others[0]) if kernel == "exact_update" else inner
        counts.append(inner + (outer - inner) / tile)
    return counts[0], counts[1]


def main(arguments: list[str] | None = None) -> None:
    """One row for each kernel that goes over the tokens."""
    name = "python -m tests.benchmarks.studies.kernels.instructions_of_a_token"
    argparse.ArgumentParser(prog=name, description=__doc__).parse_args(arguments)
    print("| kernel | warps | registers | spilled bytes | instructions of a token | barriers of a token |")
    print("|---|---|---|---|---|---|")
    walk = default("triton", SPEC, DEVICE)
    for schedule in (walk, TritonSchedule("substitution", 16, 4, 1, "bf16", ptxas="blackwell")):
        (kernel, part), *_ = parts(SPEC, schedule)
        source = render(kernel, part, schedule, DEVICE)
        needs = backend("triton").resources(source, part, schedule, DEVICE)
        assembly = backend("triton").inspect(source, part, schedule, DEVICE)["asm"]
        instructions, barriers = per_token(kernel, assembly, schedule.tile)
        cells = (kernel, schedule.block_threads(DEVICE) // 32, needs.registers, needs.spill_bytes)
        print(f"| {' | '.join(map(str, cells))} | {instructions:.0f} | {barriers:.0f} |", flush=True)


if __name__ == "__main__":
    main()
