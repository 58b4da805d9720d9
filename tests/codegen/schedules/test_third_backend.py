"""A backend is added by one folder and one registration, and is then dispatched, explained and tuned like others."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from codegen.backends import backend
from codegen.device import NAMED, cpu
from codegen.errors import ImplementationError, TemplateError, TrellisError, UnknownBackendError
from codegen.kernels.build import build, operator_digest
from codegen.render import render, template_digest
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import SCHEDULES, backends, default, from_settings, register
from codegen.spec import Problem, Spec
from tests.support.inputs import Inputs, make_inputs
from tests.support.relative_error import assert_close
from tests.toy_backend.schedule import ToySchedule
from trellis_ops import explain, forget, reference, trellis_attention, trellis_step
from trellis_ops.dispatch import resolve
from trellis_ops.specs.workload import NamedSpec
from trellis_ops.tokens import States
from tuner.budget import Budget
from tuner.search.progress import SearchProgress
from tuner.search.study import StudySession
from tuner.search.tune import tune
from tuner.studies.studies import open_storage
from tuner.workers.pool import Workers
from tuning_db import Store

SIZES = (1, 24, 2, 8, 8, 8)
SPEC = Spec(Rule(), Problem("trellis_attention", *SIZES, chunk=8))
EPS = 1e-2

pytestmark = pytest.mark.filterwarnings("ignore:.*nothing is tuned:tuning_db.TuningDatabaseWarning")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The backend, registered for one test, over a tuning database of its own."""
    monkeypatch.setenv("TRELLIS_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TRELLIS_OPS_TUNING_DB", str(tmp_path / "user"))
    monkeypatch.delenv(resolve.VARIABLE, raising=False)
    store = Store(tmp_path / "user", tmp_path / "shipped")
    monkeypatch.setattr(resolve, "default_store", lambda: store)
    forget()
    register(ToySchedule)
    yield store
    del SCHEDULES["toy"]
    forget()


def oracle(inputs: Inputs, chunk_size: int) -> tuple[Tensor, States]:
    return reference.attention(
        *inputs.args, rule=Rule(phi_eps=EPS), chunk_size=chunk_size, initial_state=inputs.initial_state
    )


def test_without_its_registration_nobody_knows_it():
    assert "toy" not in backends()
    with pytest.raises(UnknownBackendError, match="choose one of: tvm, triton"):
        from_settings("toy", {"variant": "fused", "heads_at_once": 1})
    with pytest.raises(ImplementationError, match="no such implementation"):
        trellis_attention(*make_inputs(*SIZES).args, chunk_size=8, implementation="toy")


def test_a_name_is_given_once(toy):
    register(ToySchedule)
    assert backends() == ("tvm", "triton", "toy")

    class Other(ToySchedule):
        pass

    with pytest.raises(TrellisError, match="'toy' has schedules of ToySchedule already"):
        register(Other)


def test_its_rules_and_those_of_all_backends_say_what_is_legal(toy):
    assert why_illegal(SPEC, default("toy", SPEC, cpu()), cpu()) is None
    assert "exceeds the 2 heads" in why_illegal(SPEC, ToySchedule("fused", 4), cpu())
    assert "CPUs only" in why_illegal(SPEC, ToySchedule("fused", 1), NAMED["sm_90"])
    assert "exact only for chunk 1" in why_illegal(SPEC, ToySchedule("recurrent", 1), cpu())
    assert "toy has no variant 'split'" in why_illegal(SPEC, ToySchedule("split", 1), cpu())
    backward = Spec(Rule(), Problem("trellis_attention", *SIZES, chunk=8, direction="backward"))
    assert "backward, and no other" in why_illegal(backward, default("toy", backward, cpu()), cpu())


@pytest.mark.parametrize("chunk_size", [1, 8, 100])
@pytest.mark.parametrize("step_size", ["head", "token"])
def test_a_call_that_names_it_runs_its_kernels_and_gives_the_result_of_the_oracle(toy, chunk_size, step_size):
    inputs = make_inputs(2, 20, 3, 8, 12, 8, step_size=step_size)
    options = {"phi_eps": EPS, "output_final_state": True, "implementation": "toy"}
    y, states = trellis_attention(*inputs.args, chunk_size=chunk_size, initial_state=inputs.initial_state, **options)
    expected_y, expected_states = oracle(inputs, chunk_size)
    assert_close(y, expected_y, 1e-5)
    for state, expected in zip(states, expected_states, strict=True):
        assert_close(state, expected, 1e-5)


def test_a_step_moves_the_states_in_place_and_a_backward_without_kernels_is_eager(toy):
    inputs = make_inputs(1, 1, 2, 8, 8, 8)
    given = [state.clone() for state in inputs.initial_state]
    y = trellis_step(*inputs.token(0), tuple(given), phi_eps=EPS, implementation="toy")
    expected, states = oracle(inputs, 1)
    assert_close(y, expected[:, 0], 1e-5)
    for state, moved in zip(given, states, strict=True):
        assert_close(state, moved, 1e-5)

    def gradients(leaves, implementation):
        y, _ = trellis_attention(*leaves.args, phi_eps=EPS, chunk_size=4, implementation=implementation)
        return torch.autograd.grad(y.square().sum(), leaves.args)

    leaves = make_inputs(*SIZES).leaves()
    for ours, eager in zip(gradients(leaves, "toy"), gradients(leaves, "eager"), strict=True):
        assert_close(ours, eager.double(), 1e-5)


def test_a_call_is_explained_by_its_schedule_or_by_what_the_backend_refuses(toy):
    args = make_inputs(*SIZES).args
    found = explain(trellis_attention, *args, chunk_size=8, implementation="toy")
    assert (found.implementation, found.origin) == ("toy", "default schedule")
    assert found.schedule == "toy:variant=fused,heads_at_once=1"
    assert explain(trellis_attention, *args, chunk_size=8).implementation == "tvm"
    step = make_inputs(1, 1, 2, 8, 8, 8)
    kept = tuple(state.clone() for state in step.initial_state)
    with pytest.raises(ImplementationError, match="no state of its own"):
        explain(trellis_step, *step.token(0), step.initial_state, gradient_state=kept, implementation="toy")


def test_it_need_not_render_anything(toy):
    with pytest.raises(TemplateError, match="toy renders none of its kernels"):
        render("trellis_fused", SPEC, ToySchedule("fused", 1), cpu())
    assert backend("toy").why_no_resources(cpu()) == "its kernels have no source"


def test_its_digest_is_that_of_its_own_code(toy, tmp_path, monkeypatch):
    before = operator_digest(SPEC.problem, "toy")
    assert before != operator_digest(SPEC.problem, "tvm")
    own, compiler = ToySchedule.emitters
    changed = tmp_path / compiler.name
    changed.write_text(compiler.read_text() + "# a remark\n")
    template_digest.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(ToySchedule, "emitters", (own, changed))
        assert operator_digest(SPEC.problem, "toy") != before
    template_digest.cache_clear()
    assert operator_digest(SPEC.problem, "toy") == before


def test_the_tuner_searches_all_its_schedules_in_worker_processes_and_the_winner_serves(toy, tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path / 'studies.db'}")
    with Workers(compilers=0) as workers, SearchProgress(Console(quiet=True)) as progress:
        session = StudySession(cpu(), "toy", toy, Budget(trials=10), workers, final_seconds=0.2, storage=storage)
        tuned = tune(NamedSpec("toy", SPEC), session, progress)
    assert tuned.exhausted
    assert (tuned.points, tuned.record.trials, tuned.failures.total()) == (2, 2, 0)
    assert tuned.default == "toy:variant=fused,heads_at_once=1"
    forget()
    found = explain(trellis_attention, *make_inputs(*SIZES).args, chunk_size=8, implementation="toy")
    assert (found.implementation, found.origin, found.schedule) == ("toy", "exact winner", tuned.winner)


def test_its_compiled_operator_says_what_it_is_made_of(toy):
    made = build(SPEC, ToySchedule("fused", 2), cpu())
    assert [type(kernel).__name__ for kernel in made.kernels] == ["ToyKernel"]
    assert not made.checks_arguments
