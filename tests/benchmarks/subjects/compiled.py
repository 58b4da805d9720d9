"""`torch.compile` of the eager implementation, within a limit on the time that compiling takes."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.subjects.calls import Call, Subject

PIECE_CHUNKS = 8
"""Chunks that are compiled as one graph: the loop over chunks unrolls, and compile time grows with it."""


class CompileLimitError(BaseException):
    """Compiling took longer than it may. No Exception: the compiler would take that for a failure of its own."""


@dataclass(frozen=True)
class Compiled:
    """A compiled call, or why there is none.

    Attributes:
        note: what was compiled and how long it took, or the reason.
    """

    call: Call | None
    note: str


def compile_eager(subject: Subject, limit: float) -> Compiled:
    """Compile and run `subject.eager` once.

    A step is one graph. Attention is one graph for `PIECE_CHUNKS` chunks, called for piece after piece with the state
    carried, which computes the same and compiles in a time that does not grow with T.
    """
    if limit <= 0:
        return Compiled(None, "not compiled: --compile-limit is 0")
    torch._dynamo.reset()
    function = torch.compile(subject.eager.function, dynamic=False, fullgraph=True)
    stepwise = subject.spec.problem.operator.startswith("trellis_step")
    call = Call(function, subject.eager.args, subject.eager.kwargs) if stepwise else _in_pieces(function, subject)
    try:
        start_compiler()
        started = time.perf_counter()
        with limited(limit):
            call()
    except CompileLimitError:
        return Compiled(None, f"torch.compile was stopped after {limit:.0f} s (--compile-limit)")
    except torch._dynamo.exc.TorchDynamoException as error:
        return Compiled(None, f"torch.compile failed: {str(error).splitlines()[0]}")
    finally:
        subject.reset()
    what = "one graph" if stepwise else f"pieces of {PIECE_CHUNKS} chunks, state carried"
    return Compiled(call, f"{what}; first call {time.perf_counter() - started:.1f} s")


def _in_pieces(function: Callable[..., Any], subject: Subject) -> Call:
    inputs, problem = subject.inputs, subject.spec.problem
    piece = min(PIECE_CHUNKS * problem.chunk, problem.tokens)
    ends = [(start, min(start + piece, problem.tokens)) for start in range(0, problem.tokens, piece)]
    pieces = [inputs.tokens(start, end).args for start, end in ends]

    def attention(state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs = []
        for args in pieces:
            y, state = function(*args, rule=subject.spec.rule, chunk_size=problem.chunk, initial_state=state)
            outputs.append(y)
        return torch.cat(outputs, dim=1), state

    return Call(attention, (inputs.initial_state,), {})


@functools.cache
def start_compiler() -> None:
    """Start `torch.compile` once, before anything is compiled within a limit."""
    # Imports and the compiler's own precompiled headers take many seconds, once; they are no part of a case's time,
    # and must not be cut off halfway.
    torch.compile(lambda x: x + 1)(torch.zeros(8))


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Inside, CompileLimitError is raised after so many seconds; the main thread's alone."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise CompileLimitError

    before = signal.signal(signal.SIGALRM, stop)
    # Repeated, since an exception that is raised inside a destructor is lost.
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
