"""Compiling what a model, or a list of specs, will call, before its first request."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from codegen.scalars import whole_number
from codegen.spec import GLUE_OPERATORS, Spec
from trellis_ops.calls.arguments import Request
from trellis_ops.dispatch import layer, ranks, resolve, served
from trellis_ops.explanation import Explanation, explanation_of
from trellis_ops.specs.workload import load_workload

PREFILL, PACKED, DECODE, TRAIN = KINDS = ("prefill", "packed", "decode", "train")
"""What a model may be asked for: a batch of prompts, packed prompts, tokens one by one, a gradient."""

LENGTHS = tuple(2**exponent for exponent in range(17))
"""Tokens of the calls that a model is compiled for unless they are given: one of each bucket of lengths."""


@runtime_checkable
class CallsOperators(Protocol):
    """A module that knows what its calls of the operators will be."""

    def called_specs(self, kind: str, batch: int, tokens: int) -> list[Spec]:
        """The specs of a call of `kind`, one of `KINDS`, on `[batch, tokens]` tokens."""


@runtime_checkable
class Decodes(Protocol):
    """A model that decodes token by token, by kernels of whole blocks where it has some."""

    def first_state(self, batch: int) -> Any:
        """The state before the first token of `batch` sequences."""

    def step(self, tokens: Tensor, state: Any) -> Tensor:
        """Logits after one more token `[B]`; moves `state`."""


@dataclass(frozen=True)
class WarmUp:
    """What `warm_up` made ready.

    Attributes:
        served: for each compiled operator, and each spec that eager PyTorch serves, how calls of it are served: by
            which schedule, and whether that is a winner or the default. One call stands for all that it serves.
        seconds: that it took.
    """

    served: tuple[Explanation, ...]
    seconds: float

    def __str__(self) -> str:
        lines = [f"{each.spec}: {each.schedule or each.implementation} ({each.origin})" for each in self.served]
        return "\n".join([*lines, f"{len(lines)} operators ready after {self.seconds:.1f} s"])


def warm_up(
    what: nn.Module | str | os.PathLike[str] | Iterable[Spec],
    *,
    kinds: Collection[str] = (PREFILL, DECODE),
    batch: int = 1,
    tokens: int | Sequence[int] = LENGTHS,
    device: torch.device | str | None = None,
) -> WarmUp:
    """Compile the kernels that a model, or a list of specs, will call, so that its first calls compile nothing.

    A compiled operator serves every B, T and H; which schedule a call runs on depends on their buckets. So all
    schedules are compiled that serve `batch` sequences of `tokens` tokens. A model decodes one token from a state of
    its own, so that its weights are packed and the kernels of its whole blocks are compiled. Threads and autocast are
    those of the calls to come: call it under the same.

    Args:
        what: a model with the token mixers of `trellis_ops.lm`, a list of `codegen.spec.Spec`, or the path of a
            workload file, such as TRELLIS_OPS_RECORD_SPECS wrote.
        kinds: of a model: "prefill", "packed" (prompts packed into one sequence), "decode", and "train" for forwards
            with a gradient and their reverse pass.
        batch: of a model: B, the sequences of a call.
        tokens: of a model: T, or several; every power of two up to 65,536 unless given.
        device: of specs and of a workload, the CPU unless given; a model is on its own.

    Returns:
        How the calls will be served.

    Raises:
        WorkloadError: a file that is no workload, or has no section for the device.
        TypeError, ValueError, SizeError: an argument of another kind, or out of range.
        TrellisError: a kernel that does not compile, or an implementation that TRELLIS_OPS_IMPLEMENTATION forces and
            that cannot serve.

    Example:
        >>> print(trellis_ops.warm_up(model, kinds=("prefill", "decode"), batch=4))  # doctest: +SKIP
    """
    started = time.perf_counter()
    requests = _requests(what, kinds, batch, [tokens] if isinstance(tokens, int) else tokens, device)
    found: dict[tuple[object, ...], Explanation] = {}
    for request in requests:
        for spec, explanation in _made_ready(request):
            kernel = replace(spec, problem=replace(spec.problem, batch=1, tokens=1, heads=1))
            how = (explanation.implementation, explanation.schedule, explanation.origin, explanation.device)
            found.setdefault((kernel, *how), explanation)
    if isinstance(what, nn.Module) and isinstance(what, Decodes) and DECODE in kinds:
        device = next(what.parameters()).device
        what.step(torch.zeros(batch, dtype=torch.int64, device=device), what.first_state(batch))
    return WarmUp(tuple(found.values()), time.perf_counter() - started)


def _requests(
    what: nn.Module | str | os.PathLike[str] | Iterable[Spec],
    kinds: Collection[str],
    batch: int,
    tokens: Sequence[int],
    device: torch.device | str | None,
) -> Iterable[Request]:
    if isinstance(what, nn.Module):
        return _of_model(what, kinds, batch, tokens)
    place = torch.device("cpu" if device is None else device)
    if isinstance(what, str | os.PathLike):
        kind = resolve.device_of(place).kind
        return [Request(each.spec, place, False) for each in load_workload(Path(what), kind)]
    specs = list(what)
    for each in specs:
        if not isinstance(each, Spec):
            raise TypeError(f"{each!r} is no codegen.spec.Spec; give a model, a list of specs, or a workload file")
    return [Request(each, place, False) for each in specs]


def _of_model(model: nn.Module, kinds: Collection[str], batch: int, tokens: Sequence[int]) -> Iterator[Request]:
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        if kind not in KINDS:
            raise ValueError(f"kinds has {kind!r}; choose from {', '.join(KINDS)}")
    batch = whole_number("batch", batch)
    lengths = [whole_number("tokens", each) for each in tokens]
    callers = [module for module in model.modules() if isinstance(module, CallsOperators)]
    if not callers:
        raise TypeError(f"{type(model).__name__} has no token mixer of trellis_ops.lm, whose calls are known")
    for caller in callers:
        assert isinstance(caller, nn.Module)
        device = next(caller.parameters()).device
        for kind in [kinds] if isinstance(kinds, str) else kinds:
            for length in lengths:
                for spec in caller.called_specs(kind, batch, length):
                    yield Request(spec, device, False)


def _made_ready(request: Request) -> Iterator[tuple[Spec, Explanation]]:
    """Compile what serves a request; a backward without kernels runs the forward's, and its reverse in PyTorch."""
    of_glue = request.spec.problem.operator in GLUE_OPERATORS
    own = of_glue or request.spec.problem.layer is not None
    resolution = layer.resolved(request.spec) if own else ranks.resolution_of(request, None)
    if of_glue and resolution.schedule is None:
        # The modules of a model stand for it.
        return
    operator = served.operator_of(resolution, request.spec)
    yield request.spec, explanation_of(request.spec, served.as_served(resolution, request.spec))
    if operator is None and request.spec.problem.direction != "forward":
        forward = replace(request.spec, problem=replace(request.spec.problem, direction="forward"))
        yield from _made_ready(replace(request, spec=forward))
