"""Is a candidate right? Outputs and states against the float64 oracle, on inputs that are hard to be right on."""

from __future__ import annotations

import functools
import hashlib
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tuner.verify.inputs.adversarial
import tuner.verify.inputs.adversarial_rules
import tuner.verify.inputs.layers
import tuner.verify.inputs.rules
import tuner.verify.inputs.trellis
from codegen.device import Device, cpu
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.signatures import MOVES_STATES
from codegen.spec import FAMILY_OPERATORS, GLUE_OPERATORS, ROW_OPERATORS, Spec
from tuner.verify.inputs.adversarial import Case, adversarial_inputs, cases_of
from tuner.verify.inputs.trellis import Inputs, make_inputs
from tuner.verify.launch import bind
from tuner.verify.oracle import oracle
from tuner.verify.repetition import differing
from tuning_db import Outcome

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 5e-3}
"""Largest relative error ||a - b|| / ||b|| of an output, by the type of the inputs; the one table of the project."""

OF_GRADIENTS = 10.0
"""How many times the tolerance of an output a gradient has, which is made of more products."""

OF_HARD_INPUTS = 5.0
"""How many times the tolerance inputs of `tuner.verify.inputs.adversarial` have, which amplify rounding: bfloat16 dots
lose 4e-2 on them."""

LEAST_OF_HARD_INPUTS = 5e-3
"""What they have at least: a GPU's exponentials and reciprocals are approximate, and no card has said by how much
float32 loses by them on these inputs."""

MOST_ALLOWED = 0.2
"""No output or gradient is allowed a larger relative error: one of 1 is what zeros have."""

SEED = 2512


_DECIDING = (
    *(tuner.verify.inputs.adversarial, tuner.verify.inputs.trellis, tuner.verify.inputs.layers),
    *(tuner.verify.inputs.adversarial_rules, tuner.verify.inputs.rules),
)


def allowed_digest() -> str:
    """Digest of how far off a result may be, and on which inputs: with others what was right may be wrong."""
    allowed = (TOLERANCE, OF_GRADIENTS, OF_HARD_INPUTS, LEAST_OF_HARD_INPUTS, MOST_ALLOWED, SEED)
    inputs = "".join(inspect.getsource(module) for module in _DECIDING)
    return hashlib.sha256((repr(allowed) + inputs).encode()).hexdigest()[:8]


_LEAST_SHARE = 1e-3
_UNFILLED = (torch.empty, torch.empty_like, Tensor.new_empty)
_HEADS = 2
_FEATURES = 83
_ROWS = 19
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


def check(operator: CompiledOperator, spec: Spec) -> Check:
    """Compare `operator`, compiled for `spec`, with the oracle.

    The kernels serve every batch, length and number of heads, so they are tried on few: sequences of several lengths,
    of which some end within a chunk and one is shorter than any tile, packed one after another. Outputs hold NaN
    before, so that what is not written shows; so does scratch memory. Inputs and the memory beside each output must
    stay untouched, and further runs must give the same bits. Then come the inputs of `tuner.verify.inputs.adversarial`,
    except those on which the right states are beyond float32, as with a write map z ** 3 and huge values.
    """
    checked = _check_ragged(operator, spec)
    if checked.outcome is not Outcome.ok:
        return checked
    small = _small(spec)
    for case in cases_of(small):
        wanted = _expected_of(case, small)
        if beyond_float32(wanted):
            continue
        launch = bind(operator, adversarial_inputs(case, small, _short_lengths(spec), operator.device, SEED))
        with _PoisonedScratch():
            outputs = launch.outputs_of_run()
        tolerance = max(OF_HARD_INPUTS * TOLERANCE[spec.problem.dtype], LEAST_OF_HARD_INPUTS)
        compared = compare(outputs, wanted, tolerance, _ordinary_sizes(small))
        if compared.outcome is not Outcome.ok:
            return Check(compared.outcome, f"{case.name}: {compared.reason}", checked.errors)
    return checked


def _check_ragged(operator: CompiledOperator, spec: Spec) -> Check:
    inputs = check_inputs(spec, operator.device)
    before = {name: tensor.clone() for name, tensor in inputs.tensors.items()}
    launch = bind(operator, inputs)
    with _PoisonedScratch():
        first = launch.outputs_of_run()
        unequal = differing(launch, first)
    changed = [name for name, tensor in inputs.tensors.items() if not torch.equal(tensor, before[name])]
    if changed:
        return Check(Outcome.wrong_answer, f"wrote to its inputs {', '.join(changed)}", {})
    if trespassed := launch.trespassed():
        return Check(Outcome.wrong_answer, f"wrote beside its outputs {', '.join(trespassed)}", {})
    compared = compare(first, expected(spec), TOLERANCE[spec.problem.dtype])
    if compared.outcome is Outcome.ok and unequal:
        return Check(Outcome.unstable, unequal, compared.errors)
    return compared


def compare(
    outputs: dict[str, Tensor],
    wanted: dict[str, Tensor],
    tolerance: float,
    ordinary: Mapping[str, float] | None = None,
) -> Check:
    """The verdict on `outputs`: every tensor of `wanted` present, finite, and within `tolerance` relative error.

    Gradients, whose names start with d, are allowed `OF_GRADIENTS` times as much, but never over `MOST_ALLOWED`.

    States are float32 whatever the inputs are, but they are made from inputs of that type, so one tolerance serves all.
    With `ordinary`, the usual size of a value of each output, errors are relative to ||right|| and a thousandth of that
    size: where everything cancels or is forgotten, nothing but rounding is left to compare.
    """
    errors, faults = {}, []
    for name, right in wanted.items():
        given = outputs[name].double().cpu()
        if unwritten := int((~torch.isfinite(given)).sum()):
            errors[name] = float("inf")
            faults.append(f"{name}: {unwritten} of {given.numel()} values are not finite (or were never written)")
            continue
        least = 0.0 if ordinary is None else _LEAST_SHARE * ordinary[name] * math.sqrt(right.numel())
        errors[name] = relative_error(given, right, least)
        allowed = min(MOST_ALLOWED, tolerance * (OF_GRADIENTS if name.startswith("d") else 1.0))
        if not errors[name] <= allowed:
            faults.append(f"{name}: relative error {errors[name]:.2e} exceeds {allowed:.0e}")
    return Check(Outcome.wrong_answer if faults else Outcome.ok, "; ".join(faults), errors)


def beyond_float32(right: Mapping[str, Tensor]) -> bool:
    """Whether float32, in which states and sums are kept, cannot hold all of the right values."""
    return any(not bool((tensor.abs() <= torch.finfo(torch.float32).max).all()) for tensor in right.values())


def relative_error(given: Tensor, right: Tensor, least: float = 0.0) -> float:
    """||given - right|| / (||right|| + least); 0 if both are nothing but zeros."""
    error, size = (float(torch.linalg.vector_norm(each)) for each in (given - right, right))
    if error == 0.0:
        return 0.0
    return error / (size + least) if size + least > 0.0 else math.inf


def check_inputs(spec: Spec, device: Device) -> Inputs:
    """The inputs that every candidate for `spec` is checked on."""
    return make_inputs(_small(spec), _lengths(spec), device, SEED)


def expected(spec: Spec) -> dict[str, Tensor]:
    """What the oracle gives for `check_inputs`, in float64 on the CPU; worked out once for all sizes of a spec."""
    return _expected(_small(spec))


@functools.lru_cache(maxsize=16)
def _expected(spec: Spec) -> dict[str, Tensor]:
    return oracle(spec, check_inputs(spec, cpu()))


@functools.lru_cache(maxsize=64)
def _expected_of(case: Case, spec: Spec) -> dict[str, Tensor]:
    return oracle(spec, adversarial_inputs(case, spec, _short_lengths(spec), cpu(), SEED))


def _ordinary_sizes(spec: Spec) -> dict[str, float]:
    return {name: float(tensor.square().mean().sqrt()) for name, tensor in _expected(spec).items()}


def _short_lengths(spec: Spec) -> tuple[int, ...]:
    lengths = _lengths(spec)
    return lengths if max(lengths) == 1 else (max(spec.problem.chunk, _LEAST_UNIT) + 3, 5)


def _small(spec: Spec) -> Spec:
    # The heads of a layer are a size of its kernel.
    heads = _HEADS if spec.problem.layer is None else spec.problem.heads
    if spec.problem.operator in ROW_OPERATORS:
        heads = _FEATURES
    return replace(spec, problem=replace(spec.problem, batch=1, tokens=1, heads=heads))


def _lengths(spec: Spec) -> tuple[int, ...]:
    if spec.problem.layer is not None:
        return (1,) * _ROWS
    if spec.problem.operator in MOVES_STATES:
        return (1,) * 5
    unit = max(spec.problem.chunk, _LEAST_UNIT)
    if spec.problem.operator in (*FAMILY_OPERATORS, *GLUE_OPERATORS):
        return (2 * unit + unit // 2 + 1, 0, 1, unit + 2, 19)
    return (2 * unit + unit // 2 + 1, 1, unit + 2, 19)


class _PoisonedScratch(TorchFunctionMode):
    """Within it new tensors of floats hold NaN, also those that an operator makes for itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _UNFILLED and result.is_floating_point():
            result.fill_(float("nan"))
        return result
