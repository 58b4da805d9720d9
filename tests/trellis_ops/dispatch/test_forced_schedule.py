"""A schedule that the caller forces: what runs on it, what is refused by name, and where it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import threading

import pytest
import torch

from codegen.device import cpu
from codegen.errors import IllegalScheduleError, ImplementationError, ScheduleFieldError, UnknownKernelError
from codegen.kernels.operator import CompiledOperator
from codegen.rule import Rule
from codegen.schedules.registry import default, schedule_of_key
from codegen.spec import Problem, Spec
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import explain, forget, trellis_attention, trellis_step, with_schedule

# What is not forced has a kernel that other tests have too.
SIZES = (1, 24, 2, 20, 12, 18)
RULE = Rule(phi_eps=1e-2)
SPEC = Spec(RULE, Problem("trellis_attention", *SIZES, chunk=20))
FORCED = dataclasses.replace(default("tvm", SPEC, cpu()), threads=1, accumulators=4)
OF_A_STEP = dataclasses.replace(
    default("tvm", Spec(Rule(), Problem("trellis_step", *SIZES, chunk=1)), cpu()), threads=1
)


@pytest.fixture
def ran(monkeypatch):
    """The schedules of the operators that ran, in order."""
    forget()
    schedules, run = [], CompiledOperator._run

    def noted(operator, *arguments, **named):
        schedules.append(operator.schedule)
        return run(operator, *arguments, **named)

    monkeypatch.setattr(CompiledOperator, "_run", noted)
    yield schedules
    forget()


def attend(inputs, **options):
    return trellis_attention(*inputs.args, phi_eps=1e-2, chunk_size=20, **options)[0]


def test_calls_in_the_block_run_on_it_and_those_before_and_after_it_do_not(ran):
    inputs = make_inputs(*SIZES)
    before = attend(inputs)
    with with_schedule(FORCED.key()) as schedule:
        assert schedule == FORCED
        inside = attend(inputs)
    attend(inputs)
    assert [each == FORCED for each in ran] == [False, True, False]
    assert_close(inside, before.double(), 2e-6)


def test_explain_says_so():
    inputs = make_inputs(*SIZES)
    with with_schedule(FORCED):
        found = explain(trellis_attention, *inputs.args, phi_eps=1e-2, chunk_size=20)
    assert (found.implementation, found.origin, found.schedule) == ("tvm", "forced schedule", FORCED.key())
    assert (found.record, found.notes) == (None, ())


def test_a_step_that_has_a_plan_already_runs_on_it(ran):
    inputs = make_inputs(*SIZES)
    for forced in (None, None, OF_A_STEP, None):
        states = tuple(state.clone() for state in inputs.initial_state)
        if forced is None:
            trellis_step(*inputs.token(0), states)
        else:
            with with_schedule(forced):
                trellis_step(*inputs.token(0), states)
    # The second and the last go straight to the kernel, past the operator.
    assert len(ran) == 2 and ran[1] == OF_A_STEP


def test_a_step_on_a_pool_that_has_a_plan_already_runs_on_it(ran):
    inputs, rows = make_inputs(*SIZES), {"state_indices": torch.tensor([0]), "positions": torch.tensor([1])}
    for forced in (False, False, True):
        pools = tuple(state.clone() for state in inputs.initial_state)
        with contextlib.ExitStack() as block:
            if forced:
                block.enter_context(with_schedule(ran[0].within_threads(1, cpu())))
            trellis_step(*inputs.token(0), pools, **rows)
    assert len(ran) == 2 and ran[1] == ran[0].within_threads(1, cpu())


def test_an_operator_is_named_and_others_run_on_the_best_that_is_known(ran):
    inputs = make_inputs(*SIZES)
    with with_schedule(OF_A_STEP, "trellis_step"):
        attend(inputs)
        trellis_step(*inputs.token(0), tuple(state.clone() for state in inputs.initial_state))
    assert [each == OF_A_STEP for each in ran] == [False, True]


def test_the_gradient_runs_on_one_of_a_backward(ran):
    problem = dataclasses.replace(SPEC.problem, direction="backward")
    forced = dataclasses.replace(default("tvm", Spec(RULE, problem), cpu()), checkpoint_spacing=4, tile_tokens=16)
    inputs = make_inputs(*SIZES).map(lambda x: x.requires_grad_())
    with with_schedule(forced):
        attend(inputs).sum().backward()
    assert ran == [forced, forced]
    with with_schedule(FORCED), pytest.raises(IllegalScheduleError, match=r"no variant 'fused' of .* backward"):
        attend(inputs)


def test_other_threads_are_left_alone_and_the_inner_block_counts(ran):
    inputs = make_inputs(*SIZES)
    inner = dataclasses.replace(FORCED, accumulators=8)
    with with_schedule(FORCED):
        other = threading.Thread(target=attend, args=(inputs,))
        other.start()
        other.join()
        with with_schedule(inner):
            attend(inputs)
        attend(inputs)
    assert [each == FORCED for each in ran] == [False, False, True] and ran[1] == inner


def test_it_ends_with_an_error():
    with pytest.raises(ZeroDivisionError), with_schedule(FORCED):
        raise ZeroDivisionError
    assert explain(trellis_attention, *make_inputs(*SIZES).args, chunk_size=20).origin != "forced schedule"


def test_torch_compile_runs_on_it(ran):
    inputs = make_inputs(*SIZES)
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    compiled(inputs)
    with with_schedule(FORCED):
        compiled(inputs)
    assert [each == FORCED for each in ran] == [False, True]


@pytest.mark.parametrize(
    ("schedule", "options", "error", "said"),
    [
        (OF_A_STEP, {}, IllegalScheduleError, "'recurrent' is exact only for chunk 1"),
        (dataclasses.replace(FORCED, variant="update"), {}, IllegalScheduleError, "no variant 'update'"),
        (dataclasses.replace(FORCED, variant="split", tile_tokens=64), {}, IllegalScheduleError, "exceeds the chunk"),
        (FORCED, {"implementation": "eager"}, ImplementationError, "'eager' cannot run this call: the schedule tvm:"),
        (FORCED, {"implementation": "tvn"}, ImplementationError, "'tvn' cannot run this call: the schedule tvm:"),
    ],
)
def test_a_call_that_it_cannot_compute_is_refused(schedule, options, error, said):
    with with_schedule(schedule), pytest.raises(error, match=said):
        attend(make_inputs(*SIZES), **options)


def test_float64_is_refused():
    with with_schedule(FORCED), pytest.raises(ImplementationError, match="forced, and float64 inputs run on the eager"):
        attend(make_inputs(*SIZES, dtype=torch.float64))


@pytest.mark.parametrize(
    ("schedule", "operator", "error", "said"),
    [
        ("tvm:variant=fused", None, ScheduleFieldError, "accumulators=None .* missing"),
        ("tvm", None, ScheduleFieldError, "expected backend:name=value"),
        (f"{FORCED.key()},threads=2", None, ScheduleFieldError, "threads='2' .* given twice"),
        (f"{FORCED.key()},warps=2", None, ScheduleFieldError, "warps=2 .* unknown field"),
        (None, None, TypeError, "schedule is None"),
        (FORCED, "attention", UnknownKernelError, "'attention' is no known"),
    ],
)
def test_what_is_no_schedule_is_refused_before_the_block(schedule, operator, error, said):
    with pytest.raises(error, match=said), with_schedule(schedule, operator):
        pytest.fail("the block ran")


def test_a_key_is_read_back():
    assert schedule_of_key(FORCED.key()) == FORCED
