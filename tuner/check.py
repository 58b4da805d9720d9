"""Is a candidate right? Outputs and states against the float64 oracle, on inputs that are hard to be right on."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from codegen.device import Device, cpu
from codegen.program import Program
from codegen.spec import Spec
from tuner.inputs import Inputs, make_inputs
from tuner.launch import Launch, bind
from tuner.oracle import oracle
from tuning_db import Outcome

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
"""Largest relative error ||a - b|| / ||b|| of an output, by the type of the inputs; the one table of the project."""

SEED = 2512
_UNFILLED = (torch.empty, torch.empty_like, Tensor.new_empty)
_HEADS = 2
_LEAST_UNIT = 16


@dataclass(frozen=True)
class Check:
    """What became of a comparison.

    Attributes:
        outcome: ok, wrong_answer or unstable.
        reason: what was wrong, empty if nothing was.
        errors: relative error of each output and state.
    """

    outcome: Outcome
    reason: str
    errors: dict[str, float]


def check(program: Program, spec: Spec) -> Check:
    """Compare `program`, compiled for `spec`, with the oracle.

    The kernels serve every batch, length and number of heads, so they are tried on few: sequences of several lengths,
    of which some end within a chunk and one is shorter than any tile, packed one after another. Outputs hold NaN
    before, so that what is not written shows; so does scratch memory. Inputs and the memory beside each output must
    stay untouched, and a second run must give the same bits.
    """
    inputs = check_inputs(spec, program.device)
    before = {name: tensor.clone() for name, tensor in inputs.tensors.items()}
    launch = bind(program, inputs)
    with _PoisonedScratch():
        first = _outputs_of_run(launch)
        second = _outputs_of_run(launch)
    changed = [name for name, tensor in inputs.tensors.items() if not torch.equal(tensor, before[name])]
    if changed:
        return Check(Outcome.wrong_answer, f"wrote to its inputs {', '.join(changed)}", {})
    if trespassed := launch.trespassed():
        return Check(Outcome.wrong_answer, f"wrote beside its outputs {', '.join(trespassed)}", {})
    compared = compare(first, expected(spec), TOLERANCE[spec.problem.dtype])
    if compared.outcome is not Outcome.ok:
        return compared
    unequal = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    if unequal:
        reason = f"two runs on the same inputs differ in {', '.join(unequal)}"
        return Check(Outcome.unstable, reason, compared.errors)
    return compared


def compare(outputs: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> Check:
    """The verdict on `outputs`: every tensor of `wanted` present, finite, and within `tolerance` relative error.

    States are float32 whatever the inputs are, but they are made from inputs of that type, so one tolerance serves all.
    """
    errors, faults = {}, []
    for name, right in wanted.items():
        given = outputs[name].double().cpu()
        if unwritten := int((~torch.isfinite(given)).sum()):
            errors[name] = float("inf")
            faults.append(f"{name}: {unwritten} of {given.numel()} values are not finite (or were never written)")
            continue
        errors[name] = relative_error(given, right)
        if not errors[name] <= tolerance:
            faults.append(f"{name}: relative error {errors[name]:.2e} exceeds {tolerance:.0e}")
    return Check(Outcome.wrong_answer if faults else Outcome.ok, "; ".join(faults), errors)


def relative_error(given: Tensor, right: Tensor) -> float:
    """||given - right|| / ||right||."""
    return float(torch.linalg.vector_norm(given - right) / torch.linalg.vector_norm(right))


def check_inputs(spec: Spec, device: Device) -> Inputs:
    """The inputs that every candidate for `spec` is checked on."""
    return make_inputs(_small(spec), _lengths(spec), device, SEED)


def expected(spec: Spec) -> dict[str, Tensor]:
    """What the oracle gives for `check_inputs`, in float64 on the CPU; worked out once for all sizes of a spec."""
    return _expected(_small(spec))


@functools.lru_cache(maxsize=16)
def _expected(spec: Spec) -> dict[str, Tensor]:
    return oracle(spec, check_inputs(spec, cpu()))


def _small(spec: Spec) -> Spec:
    return replace(spec, problem=replace(spec.problem, batch=1, tokens=1, heads=_HEADS))


def _lengths(spec: Spec) -> tuple[int, ...]:
    if spec.problem.operator.startswith("trellis_step"):
        return (1,) * 5
    unit = max(spec.problem.chunk, _LEAST_UNIT)
    return (2 * unit + unit // 2 + 1, 1, unit + 2, 19)


def _outputs_of_run(launch: Launch) -> dict[str, Tensor]:
    launch.reset()
    launch.run()
    return {name: tensor.clone() for name, tensor in launch.outputs.items()}


class _PoisonedScratch(TorchFunctionMode):
    """Within it new tensors of floats hold NaN, also those that a program makes for itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _UNFILLED and result.is_floating_point():
            result.fill_(float("nan"))
        return result
