"""Is what came out right, and only that written?"""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz.cases import STATES, Case, is_step
from tests.fuzz.expectations import expected
from tests.fuzz.rules.drawn import is_of_rule
from tests.fuzz.rules.values import moved_states
from tests.fuzz.running import run
from tests.fuzz.tensors import DTYPES, Call, make
from tests.support.relative_error import TOLERANCE

OF_GRADIENTS = 10.0
OF_ROUNDING = 30.0
"""How many times as much as the oracle itself loses in float32 a kernel may lose, where that is more than usual."""

_ROUNDING = {torch.float32: 1.2e-7, torch.bfloat16: 1.2e-7, torch.float16: 1.2e-7}
_LARGEST = 1e30
_CANCELLED = 1e-2  # Where 1e-5 of a value is right, so is 1e-7 in place of one that cancels.


def check(case: Case) -> None:
    """Run `case` twice and compare with the oracle.

    Every output is within the tolerance of its type, or where float32 itself cannot be, within `OF_ROUNDING` times what
    it loses; the second run gives the same bits; no input is changed, nor what lies beside a state.
    """
    torch.set_num_threads(1)  # The oracle's operations are too small for two. `run` has those of the case.
    call = make(case)
    right = expected(case, call)
    if is_of_rule(case.kernel.spec.problem):
        if any(x.isnan().any() for name, x in right.items() if not name.startswith("d")):
            return  # It has diverged.
        # Where a gate is -inf, autograd of the oracle may have 0 x inf.
        right = {name: x for name, x in right.items() if not x.isnan().any()}
    if any(float(x.abs().max()) > _LARGEST for x in right.values() if x.numel()):
        return  # What overflows in float32 has no right value there.
    first = _run_watched(case, call)
    wrong = _wrong(case, call, first, right)
    assert not wrong, "; ".join(wrong)
    again = _run_watched(case, make(case))
    for name in right:
        assert torch.equal(first[name], again[name]), f"{name} differs between two runs"


def _run_watched(case: Case, call: Call) -> dict[str, Tensor]:
    before = {name: (x, x.clone(), _storage(x).clone()) for name, x in call.tensors.items()}
    results = {name: x.clone() for name, x in run(case, call).items()}
    problem = case.kernel.spec.problem
    moved = moved_states(case) if is_of_rule(problem) else STATES if is_step(problem) else ()
    for name, (x, values, storage) in before.items():
        if name in moved:
            x.copy_(values)  # All but the state itself is as it was, if this puts everything back.
        if case.aliased != "no" and name in ("G_k", "G_v"):
            continue
        # As bytes, since memory that nobody wrote may hold NaN.
        same = torch.equal(_storage(x).view(torch.uint8), storage.view(torch.uint8))
        assert same, f"memory beside {name} was written" if name in moved else f"{name} was written"
    return results


def _storage(x: Tensor) -> Tensor:
    size = x.untyped_storage().nbytes() // x.element_size()
    return x.detach().as_strided((size,), (1,), 0)


def _wrong(case: Case, call: Call, given: dict[str, Tensor], right: dict[str, Tensor]) -> list[str]:
    dtype = torch.bfloat16 if case.autocast else DTYPES[case.kernel.spec.problem.dtype]
    losses: list[dict[str, Tensor]] = []
    wrong = []
    for name, wanted in right.items():
        output = given[name]
        if output.shape != wanted.shape:
            wrong.append(f"{name} has shape {tuple(output.shape)} instead of {tuple(wanted.shape)}")
            continue
        tolerance = TOLERANCE[dtype] * (OF_GRADIENTS if name.startswith("d") else 1.0)
        error = _error(output, wanted)
        if error <= tolerance:
            continue
        if not losses:
            noise = _ROUNDING[dtype]
            losses += [expected(case, call, noise=noise), expected(case, call, noise=-noise)]
            # Several, since what cancels in exact numbers may do so by luck in one rounding: u of l2_silu for one slot.
            losses += [expected(case, call, torch.float32, times * noise) for times in (0, 1, -1, 2, -2)]
        rounded = [_error(each[name].to(output.dtype), wanted) for each in losses]
        allowed = max(tolerance, OF_ROUNDING * max(rounded))
        error = _error(output, wanted, least=_CANCELLED * _size(call, right))
        if not error <= allowed:
            finite = "" if output.isfinite().all() else ", not all of it finite"
            wrong.append(f"{name}: relative error {error:.2e} exceeds {allowed:.0e}{finite}")
    return wrong


def _size(call: Call, right: dict[str, Tensor]) -> float:
    """How large values of this call are: what they cancel to is known no better than to their rounding."""
    tensors = [*right.values(), *(cotangent for cotangent in call.incoming.values() if cotangent is not None)]
    return max((float(x.double().square().mean().sqrt()) for x in tensors if x.numel()), default=0.0)


def _error(given: Tensor, right: Tensor, least: float = 0.0) -> float:
    """||given - right|| / ||right||, whose values count as no smaller than `least`; infinite for what is not finite."""
    given, right = given.double(), right.double()
    if not given.isfinite().all():
        return float("inf")
    error, size = float((given - right).norm()), float(right.norm()) + least * right.numel() ** 0.5
    return 0.0 if error == 0.0 else error / size if size else float("inf")
