"""Exact winner, bucket winner, default schedule, eager: which one serves a call, and what explain says of it."""

from __future__ import annotations

import dataclasses
import shutil
import warnings

import pytest
import torch

import trellis_ops
from codegen import render
from codegen.device import cpu
from codegen.kernels import build as builder
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from tests.support.winner_record import winner_record
from trellis_ops import explain, selection, trellis_attention, trellis_step
from trellis_ops.dispatch import resolve
from tuning_db import Record, Store, TuningDatabaseWarning

SIZES = (1, 24, 2, 16, 16, 8)
SPEC = Spec(Rule(), Problem("trellis_attention", *SIZES, chunk=8))


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    """An empty user layer over an empty shipped one."""
    made = Store(tmp_path / "user", tmp_path / "shipped")
    monkeypatch.setattr(resolve, "default_store", lambda: made)
    monkeypatch.delenv(resolve.VARIABLE, raising=False)
    trellis_ops.forget()
    yield made
    trellis_ops.forget()


def record(spec: Spec = SPEC, **changes) -> Record:
    return winner_record(spec, dataclasses.replace(default("tvm", spec, cpu()), threads=1), **changes)


def ask(sizes=SIZES, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningDatabaseWarning)
        return explain(trellis_attention, *make_inputs(*sizes).args, chunk_size=8, **options)


def test_without_a_record_the_default_schedule_runs():
    found = ask()
    assert (found.implementation, found.origin) == ("tvm", "default schedule")
    assert found.schedule == default("tvm", SPEC, cpu()).key()
    assert found.record is None
    assert "make tune" in found.notes[0]


def test_the_exact_winner_runs(store):
    store.commit(record())
    found = ask()
    assert found.origin == "exact winner"
    assert "threads=1" in found.schedule
    assert found.record == str(store.user.path(cpu().key()))
    assert found.notes == ()


def test_the_winner_of_the_bucket_stands_in_for_neighbours(store):
    store.commit(record())
    found = ask((2, 30, 1, 16, 16, 8))
    assert found.origin == "bucket winner"
    assert "bucket" in found.notes[0]
    assert ask((1, 33, 2, 16, 16, 8)).origin == "default schedule"


def on_cores(cores: int) -> str:
    return dataclasses.replace(cpu(), cores=cores).key()


def test_the_winner_of_the_fewest_more_cores_stands_in_on_the_threads_that_are_here(store, monkeypatch):
    widest = dataclasses.replace(default("tvm", SPEC, cpu()), threads=64)
    for more in (30, 1):
        store.commit(winner_record(SPEC, widest, device=on_cores(cpu().cores + more)))
    found = ask()
    assert found.origin == "exact winner"
    assert found.record == str(store.user.path(on_cores(cpu().cores + 1)))
    assert f"threads={min(cpu().cores, torch.get_num_threads())}," in f"{found.schedule},"
    assert f"the winner of {on_cores(cpu().cores + 1)} stands in" in found.notes[0]
    assert f"make tune CORES={cpu().cores}" in found.notes[0]
    inputs = make_inputs(*SIZES)
    served, plain = (trellis_attention(*inputs.args, chunk_size=8, implementation=each)[0] for each in ("tvm", "eager"))
    assert_close(served, plain, 1e-5)
    store.commit(record())
    assert ask().record == str(store.user.path(cpu().key()))


@pytest.mark.parametrize("device", [dataclasses.replace(cpu(), name="another-cpu", cores=64).key(), on_cores(0)])
def test_no_winner_of_another_cpu_or_of_fewer_cores_stands_in(device: str, store):
    store.commit(record(device=device))
    assert ask().origin == "default schedule"


def test_a_new_record_is_used_after_forget(store):
    inputs = make_inputs(*SIZES)
    before, _ = trellis_attention(*inputs.args, chunk_size=8)
    store.commit(record())
    trellis_ops.forget()
    after, _ = trellis_attention(*inputs.args, chunk_size=8)
    assert_close(after, before.double(), 2e-6)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"toolchain": {"apache-tvm": "0.1"}}, "another toolchain"),
        ({"schedule": {"variant": "fused"}}, "missing"),
        ({"schedule": record().schedule | {"threads": 3}}, "threads"),
        ({"schedule": record().schedule | {"command": "rm"}}, "unknown field"),
        ({"schedule": record().schedule | {"variant": "split", "tile_tokens": 64}}, "exceeds the chunk"),
        ({"schedule": record().schedule | {"variant": "../../etc"}}, "variant"),
    ],
)
def test_a_record_that_cannot_be_used_is_passed_over_and_said(store, changes, words):
    store.commit(record(**changes))
    found = ask()
    assert found.origin == "default schedule"
    assert any(words in note for note in found.notes)


def test_a_record_of_older_templates_is_named(store):
    store.commit(record(template_digest="0" * 16))
    assert "template_digest" in ask().notes[0]


@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_an_implementation_can_be_forced(implementation):
    found = ask(implementation=implementation)
    assert found.implementation == implementation


def test_an_implementation_can_be_forced_for_a_process(monkeypatch):
    monkeypatch.setenv(resolve.VARIABLE, "eager")
    assert ask().origin == "forced"


def test_float64_runs_eager():
    inputs = make_inputs(*SIZES, dtype=torch.float64)
    found = explain(trellis_attention, *inputs.args)
    assert found.implementation == "eager"
    assert "float64" in found.notes[0]


def test_explain_takes_every_operator_and_prints():
    inputs = make_inputs(*SIZES)
    gates = (inputs.log_decay, inputs.step_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningDatabaseWarning)
        step = explain(trellis_step, *inputs.token(0), inputs.initial_state)
        chunked = explain(trellis_step, *inputs.token(0), inputs.initial_state, gradient_state=inputs.initial_state)
        update = explain(trellis_ops.memory_update, inputs.k, inputs.target, *gates)
        states, codes = torch.zeros(1, 1, 2, 8, 16), torch.zeros(1, 24, 2, 8)
        readout = explain(trellis_ops.memory_readout, inputs.q, inputs.k, states, codes, *gates)
    assert step.spec.startswith("trellis_step-")
    assert chunked.spec.startswith("trellis_step_chunked-")
    assert update.spec.startswith("memory_update-")
    assert readout.spec.startswith("memory_readout-")
    assert cpu().key() in str(readout)


def test_selection_counts_the_winners_of_the_devices_here(store):
    store.commit(record())
    found = selection()
    assert found.devices[0] == cpu().key()
    assert found.records[cpu().key()] == 1
    assert str(store.user.folder) in str(found)


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema": 99}', b"\x00" * 100, b'[{"__import__": "os"}]'])
def test_a_damaged_database_is_one_warning_and_the_default(store, content):
    path = store.user.path(cpu().key())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    trellis_ops.forget()
    with pytest.warns(TuningDatabaseWarning, match=path.name) as caught:
        found = explain(trellis_attention, *make_inputs(*SIZES).args, chunk_size=8)
        explain(trellis_attention, *make_inputs(*SIZES).args, chunk_size=8)
    assert len(caught) == 1
    assert found.origin == "default schedule"


@pytest.mark.parametrize(("name", "value"), [("tile_tokens", 16.0), ("threads", True), ("threads", 1.0)])
def test_a_setting_of_another_type_is_no_setting(store, name, value):
    written = record()
    written.schedule[name] = value
    assert written.schedule[name] in (1, 16), "it is equal to one that is legal"
    store.commit(written)
    found = ask()
    assert found.origin == "default schedule"
    assert any(f"{name}={value!r}" in note for note in found.notes), found.notes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trellis_attention(*make_inputs(*SIZES).args, chunk_size=8)


@pytest.fixture
def templates_that_refuse_one_thread(tmp_path, monkeypatch):
    """A copy of the templates of which the fused kernel compiles for more than one thread only."""
    copy = tmp_path / "templates"
    shutil.copytree(render.TEMPLATES, copy)
    path = copy / "tvm" / "trellis_fused.py.j2"
    path.write_text("{% if schedule.threads == 1 %}{{ refused.here }}{% endif %}" + path.read_text())
    caches = (render._environment, render.template_digest, builder._build)
    monkeypatch.setattr(render, "TEMPLATES", copy)
    for cache in caches:
        cache.cache_clear()
    yield
    monkeypatch.undo()
    for cache in caches:
        cache.cache_clear()
    trellis_ops.forget()


def test_explain_says_what_ran_where_the_winner_does_not_compile(store, templates_that_refuse_one_thread):
    store.commit(record())
    assert ask().origin == "exact winner", "nothing was compiled yet"
    inputs = make_inputs(*SIZES).args
    with pytest.warns(UserWarning, match="does not compile, the default is used"):
        y = trellis_attention(*inputs, chunk_size=8)[0]
    assert_close(y, trellis_attention(*inputs, chunk_size=8, implementation="eager")[0], 1e-5)
    found = ask()
    assert (found.origin, found.record) == ("default schedule", None)
    assert found.schedule == default("tvm", SPEC, cpu()).key() != record().schedule
    assert any("does not compile here" in note and "refused" in note for note in found.notes), found.notes
    trellis_ops.forget()
    assert ask().origin == "exact winner", "after tuning it is tried again"
