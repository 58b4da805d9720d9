"""Recorded specs: what really ran, once each, from several processes, and never at the cost of a call."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from pathlib import Path

import pytest

import trellis_ops
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from tests.support.inputs import make_inputs
from trellis_ops.specs import recorded
from trellis_ops.specs.recorded import SpecRecordWarning
from trellis_ops.specs.workload import load_workload
from tuner.workload import DEFAULT_FILE, RULES_FILE

SIZES = (1, 24, 2, 16, 16, 8)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where specs are recorded; this process has recorded none."""
    path = tmp_path / "specs.json"
    monkeypatch.setenv(recorded.VARIABLE, str(path))
    trellis_ops.forget()
    yield path
    trellis_ops.forget()


def specs_in(path: Path, kind: str = "cpu") -> list[Spec]:
    return [each.spec for each in load_workload(path, kind)]


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_spec_is_read_back_as_it_was(kind, file):
    specs = [each.spec for workload in (DEFAULT_FILE, RULES_FILE) for each in load_workload(workload, kind)]
    own = Rule(phi="cubed(z, a) = (z - a) ** 4", passes=1, decay="slot", step_size="token")
    specs += [Spec(own, Problem("memory_attention", chunk=1)), Spec(Rule(phi="softmax"), Problem("memory_update"))]
    for spec in specs:
        recorded.record(spec, kind)
    assert sorted(each.key() for each in specs_in(file, kind)) == sorted({each.key() for each in specs})


def test_calls_are_recorded_once_for_each_bucket(file):
    for tokens in (24, 24, 30, 33):
        trellis_ops.trellis_attention(*make_inputs(1, tokens, *SIZES[2:]).args, chunk_size=8)
    inputs = make_inputs(*SIZES)
    trellis_ops.trellis_step(*inputs.token(0), tuple(state.clone() for state in inputs.initial_state))
    found = [(each.problem.operator, each.problem.tokens) for each in specs_in(file)]
    assert found == [("trellis_attention", 24), ("trellis_attention", 33), ("trellis_step", 1)]


def test_calls_of_eager_pytorch_are_not_recorded(file):
    trellis_ops.trellis_attention(*make_inputs(*SIZES).args, chunk_size=8, implementation="eager")
    assert not file.exists()


def test_devices_have_sections_of_their_own_in_one_file(file):
    spec = Spec(Rule(), Problem())
    for kind in ("cpu", "cuda", "hip"):
        recorded.record(spec, kind)
    assert specs_in(file, "cpu") == specs_in(file, "hip") == [spec]


def _records(first: int) -> None:
    for heads in range(first, first + 6):
        recorded.record(Spec(Rule(), Problem(heads=2**heads)), "cpu")


def test_processes_that_write_at_once_lose_nothing(file):
    starting = multiprocessing.get_context("fork")
    processes = [starting.Process(target=_records, args=(first,)) for first in (0, 3, 6)]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    assert sorted(each.problem.heads for each in specs_in(file)) == [2**n for n in range(12)]
    assert sorted(path.name for path in file.parent.iterdir()) == [".specs.json.lock", "specs.json"]


def test_what_a_process_recorded_is_added_to_what_was_there(file):
    recorded.record(Spec(Rule(), Problem()), "cpu")
    before = file.read_text()
    recorded._done.clear()
    recorded.record(Spec(Rule(), Problem(batch=2, heads=4)), "cpu")
    assert file.read_text() == before
    recorded.record(Spec(Rule(), Problem(heads=16)), "cpu")
    assert len(specs_in(file)) == 2


def _read_only(path: Path) -> str:
    path.parent.chmod(0o500)
    return "Permission denied"


def _own_workload(path: Path) -> str:
    path.write_text("cpu:\n  - {name: mine, heads: 2}\n")
    return "it is there, and no file of recorded specs"


def _other_json(path: Path) -> str:
    path.write_text('{"cpu": {"name": 3}}')
    return "it is there, and no file of recorded specs"


def _full(path: Path) -> str:
    recorded.record(Spec(Rule(), Problem(heads=1024)), "cpu")
    recorded.MAX_BYTES = len(path.read_text())
    return "over [0-9]+ bytes"


def _folder(path: Path) -> str:
    path.mkdir()
    return "is a folder, not a regular file"


def _pipe(path: Path) -> str:
    os.mkfifo(path)
    return "is a named pipe, not a regular file"


@pytest.mark.parametrize("spoil", [_own_workload, _other_json, _full, _folder, _pipe, _read_only])
def test_a_file_that_cannot_be_written_is_one_warning_and_keeps_what_it_holds(spoil, file, monkeypatch):
    if spoil is _read_only and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    monkeypatch.setattr(recorded, "MAX_BYTES", recorded.MAX_BYTES)
    said = spoil(file)
    before = file.read_text() if file.is_file() else None
    inputs = make_inputs(*SIZES)
    with pytest.warns(SpecRecordWarning, match=f"TRELLIS_OPS_RECORD_SPECS=.*: .*{said}") as caught:
        y, _ = trellis_ops.trellis_attention(*inputs.args, chunk_size=8)
        trellis_ops.trellis_attention(*inputs.args, chunk_size=4)
    assert sum(issubclass(each.category, SpecRecordWarning) for each in caught) == 1
    assert y.shape == inputs.v.shape
    assert before is None or file.read_text() == before


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv(recorded.VARIABLE, str(tmp_path / "file" / "specs.json"))
    with pytest.warns(SpecRecordWarning, match="no specs are recorded in TRELLIS_OPS_RECORD_SPECS=.*specs.json: "):
        recorded.record(Spec(Rule(), Problem()), "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        recorded.record(Spec(Rule(), Problem(heads=2)), "cpu")


def test_nothing_is_recorded_unless_a_file_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv(recorded.VARIABLE, "")
    monkeypatch.chdir(tmp_path)
    recorded.record(Spec(Rule(), Problem()), "cpu")
    assert list(tmp_path.iterdir()) == []
