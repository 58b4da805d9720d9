"""Chunk forms in vectorised PyTorch, as flash-linear-attention has them, and `torch.compile` of them.

They are the references of `fla.ops.*.naive` that compute the tokens of a chunk at once: what a careful user of eager
PyTorch would run. They have no scale here, take the initial state, and give the final one in this project's layout.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks.subjects.compiled import CompileLimitError, limited, start_compiler

Named = dict[str, Tensor]
Function = Callable[..., Any]
Results = tuple[Tensor, Named]

CHUNK = 64
"""What the tokens of a call must be a multiple of."""

PIECE = 8 * CHUNK
"""Tokens that are one graph of `torch.compile`; eager code is also timed in such pieces, which stay in caches."""

_OPS = "fla.ops"


@dataclass(frozen=True)
class Careful:
    """A chunk form of a rule.

    Attributes:
        reference: module and function.
        run: calls it on the tensors of a rule, `[B, T, H, ...]`, and its states; y, and the last states.
        whole: whether a sequence of thousands of tokens fits the memory at once; else it runs in pieces only.
    """

    reference: str
    run: Callable[[Function, Named, Named], Results]
    whole: bool = True

    def function(self) -> Function:
        """The reference.

        Raises:
            ImportError: fla-core is not installed.
        """
        module, _, name = self.reference.partition(":")
        found: Function = getattr(importlib.import_module(f"{_OPS}.{module}"), name)
        return found


@dataclass(frozen=True)
class CarefulCalls:
    """Calls that compute one forward.

    Attributes:
        eager: by name, the ways to run it in eager PyTorch.
        compiled: None where it was not compiled, see `note`.
        note: what was compiled and how long it took, or why it was not.
    """

    eager: dict[str, Callable[[], Results]]
    compiled: Callable[[], Results] | None
    note: str


def careful_calls(careful: Careful, given: Named, held: Named, per_head: set[str], limit: float) -> CarefulCalls:
    """The calls on the tensors of a rule.

    Args:
        careful: what to run.
        given: by name, `[B, T, H, ...]`, or `[H, ...]` of those in `per_head`.
        held: the states.
        per_head: names of what each head has.
        limit: seconds that `torch.compile` may take; 0 leaves it out.

    Raises:
        ImportError: fla-core is not installed.
    """
    function = careful.function()
    pieces = _pieces(given, per_head)
    eager: dict[str, Callable[[], Results]] = {"pieces": lambda: _in_pieces(careful, function, pieces, held)}
    if careful.whole and len(pieces) > 1:
        eager["whole"] = lambda: careful.run(function, given, held)
    compiled, note = _compiled(careful, function, pieces, held, limit)
    return CarefulCalls(eager, compiled, note)


def _pieces(given: Named, per_head: set[str]) -> list[Named]:
    tokens = given["q"].shape[1]
    return [
        {name: x if name in per_head else x[:, begin : begin + PIECE].contiguous() for name, x in given.items()}
        for begin in range(0, tokens, PIECE)
    ]


def _in_pieces(careful: Careful, function: Function, pieces: list[Named], held: Named) -> Results:
    outputs, state = [], held
    for piece in pieces:
        y, state = careful.run(function, piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def _compiled(
    careful: Careful, function: Function, pieces: list[Named], held: Named, limit: float
) -> tuple[Callable[[], Results] | None, str]:
    if limit <= 0:
        return None, "not compiled"
    torch._dynamo.reset()
    made = torch.compile(function, dynamic=False)
    start_compiler()
    started = time.perf_counter()
    try:
        with limited(limit):
            _in_pieces(careful, made, pieces, held)
    except CompileLimitError:
        return None, f"torch.compile was stopped after {limit:.0f} s"
    except torch._dynamo.exc.TorchDynamoException as error:
        return None, f"torch.compile failed: {str(error).splitlines()[0]}"
    note = f"compiled in pieces of {PIECE} tokens, first call {time.perf_counter() - started:.0f} s"
    return lambda: _in_pieces(careful, made, pieces, held), note


def _gated(*names: str, step: bool = True) -> Callable[[Function, Named, Named], Results]:
    """A reference that takes the tensors of these names in order; without `step` the values are scaled by it."""

    def run(function: Function, given: Named, held: Named) -> Results:
        tensors = {"log_decay": torch.zeros_like(given["step_size"])} | given
        if not step:
            tensors["v"] = given["v"] * given["step_size"][..., None]
        ordered = [tensors[name] for name in names]
        y, last = function(*ordered, scale=1.0, initial_state=held["S"].mT, output_final_state=True)
        return y, {"S": last.mT}

    return run


def _gdn2(function: Function, given: Named, held: Named) -> Results:
    """Its erase gate is what the probe is of the key, its write gate the step size."""
    step = given["step_size"][:, None]
    write = torch.ones_like(given["v"]) * step
    tensors = (given["q"], given["k"], given["v"], given["log_decay"], step * given["probe"] / given["k"], write)
    y, last = function(*tensors, scale=1.0, initial_state=held["S"].mT, output_final_state=True)
    return y, {"S": last.mT}


def _rwkv7(function: Function, given: Named, held: Named) -> Results:
    """Heads come first, and queries are divided by the root of D_k inside."""
    names = ("k", "v", "erase_a", "erase_b", "log_decay")
    tensors = {name: given[name].transpose(1, 2) for name in names}
    tensors["v"] = tensors["v"] * given["step_size"][:, None, None]
    q = (given["q"] * given["q"].shape[-1] ** 0.5).transpose(1, 2)
    y, last = function(q, *(tensors[name] for name in names), initial_state=held["S"].mT, output_final_state=True)
    return y.transpose(1, 2), {"S": last.mT}


_DELTA = ("q", "k", "v", "log_decay", "step_size")
_GATED_DELTA = Careful("gated_delta_rule.naive:naive_chunk_gated_delta_rule", _gated(*_DELTA))

CAREFUL = {
    "linear": Careful("simple_gla.naive:naive_chunk_simple_gla", _gated("q", "k", "v", "log_decay", step=False)),
    # The reference of DeltaNet takes no initial state.
    "deltanet": _GATED_DELTA,
    "gated_deltanet": _GATED_DELTA,
    "delta_product": _GATED_DELTA,
    "comba": Careful("comba.naive:naive_chunk_comba", _gated("q", "k", "v", "probe", "log_decay", "step_size")),
    "kda": Careful("kda.naive:naive_chunk_kda", _gated(*_DELTA)),
    # All pairs of a chunk's tokens by all channels at once.
    "gdn2": Careful("gdn2.naive:naive_chunk_gdn2", _gdn2, whole=False),
    "rwkv7": Careful("generalized_delta_rule.dplr.naive:dplr_chunkwise", _rwkv7),
}
"""By the name of the rule."""

_UNFIT = {
    "ttt_linear": "fla's chunk form always moves a bias, which the rule has only where its caller appends a 1",
    "titans": "fla's chunk form divides by products of a chunk's momenta, and is right where they are near 1 only",
}


def why_no_careful_form(name: str) -> str | None:
    """Why a rule is compared with no chunk form; None where it is."""
    return None if name in CAREFUL else _UNFIT.get(name, "fla has no chunk form of it")
