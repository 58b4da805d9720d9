from __future__ import annotations

import functools
import sys
from pathlib import Path

import optuna
import pytest
import torch

from codegen.device import cpu
from tests.tuner.conftest import FINAL_SECONDS, STEP
from trellis_ops import explain, forget, memory_attention
from tuner.cli import main
from tuner.duration import duration
from tuner.experiments import slots
from tuner.search.progress import describe
from tuner.search.search import Status
from tuner.search.study import StudySession
from tuner.studies.studies import default_url, open_storage, unusable
from tuner.workers.pool import Workers
from tuning_db import Outcome, Store, default_store

STEP_TEXT = "step: operator=trellis_step, tokens=1, heads=2, dim=8, slots=8, chunk=1"
BROKEN_TEXT = "broken: operator=memory_update, tokens=32, heads=2, dim=8, slots=8, chunk=8"


MAPS = "phi=cube_of_a_user(z) = z ** 3, link=leaky_of_a_user(z) = max(z, 0) + 0.1 * min(z, 0)"
"""Their commas are no ends of fields, and their names are known to no process before."""

RULE = '{"phi": "quartic_of_a_user(z, a) = (z - a) ** 4", "passes": 1, "view": "half_of_a_user(z) = 0.5 * z"}'
"""Worker processes make its loss and its view of their definitions."""

TEXTS = (
    STEP_TEXT,
    "gdn: rule=gated_deltanet, tokens=32, heads=2, dim=8",
    f"maps: operator=trellis_step, tokens=1, heads=2, dim=8, slots=8, chunk=1, {MAPS}",
    f"mine: operator=memory_step, rule={RULE}, heads=2, dim=8",
)


@pytest.mark.usefixtures("shared_workers")
def test_specs_are_tuned_shown_reported_shipped_and_used(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    given = [word for text in TEXTS for word in ("--spec", text)]
    assert main(["tune", *given, "--budget", "1", "--no-slots", "--no-offline"]) == 0
    said = capsys.readouterr().out
    assert "step: searching" in said
    assert "Tuned here" in said
    assert "step: variant=recurrent" in said
    assert default_url().removeprefix("sqlite:///") in said
    by_spec = {record.spec: record for record in default_store().records(cpu().key(), layer="user")}
    step = by_spec.pop(STEP.key())
    assert step.source.startswith("python -m tuner tune --spec 'step: ")
    (maps,) = [spec for spec in by_spec if "phi=cube_of_a_user@" in spec]
    assert "link=leaky_of_a_user@" in maps
    (mine,) = [spec for spec in by_spec if "phi=quartic_of_a_user@" in spec]
    assert "view=half_of_a_user@" in mine
    (gdn,) = by_spec.keys() - {maps, mine}
    assert gdn.startswith("memory_attention-forward/B1-T32-H2/Dk8-Dv8-M8-C1/float32/rule(phi=identity,")

    assert main(["show"]) == 0
    assert f"{STEP.key()}\n    tvm, user, " in capsys.readouterr().out
    # A name of the workload of rules, of another size, which nobody tunes where it is shipped for.
    assert main(["show", "--why", "omeganet"]) == 2
    assert main(["show", "--why", "decay_first=True"]) == 0
    assert f"{gdn}\n" in capsys.readouterr().out
    assert main(["report", "--text"]) == 0
    assert " tried, 0 failed" in capsys.readouterr().out
    assert main(["report", "--file", str(tmp_path / "report.html")]) == 0
    assert "rule(phi=identity," in (tmp_path / "report.html").read_text()

    assert main(["ship", "--folder", str(tmp_path / "winners")]) == 0
    assert f"{cpu().key()}.json" in capsys.readouterr().out.replace("\n", "")
    assert step in Store(None, tmp_path / "winners").records(cpu().key())
    for command in ("export", "import", "merge"):
        assert main([command, str(tmp_path / "elsewhere")]) == 0

    q, gates = torch.randn(1, 32, 2, 8), torch.full((1, 32, 2), -0.1)
    forget()
    used = explain(memory_attention, q, q, q, None, gates, -gates, rule="gated_deltanet")
    assert used.origin.endswith("winner"), used
    assert all(f"{name}={value}" in used.schedule for name, value in by_spec[gdn].schedule.items())


@pytest.mark.usefixtures("shared_workers")
def test_the_study_of_slots_and_chunk_takes_a_rule(capsys, monkeypatch):
    for name, value in {"CHUNKS": (1, 4), "DIM": 8, "HEADS": 2, "_TOKENS": 16, "_EXACT_TOKENS": 16}.items():
        monkeypatch.setattr(slots, name, value)
    before = default_store().recommendation(cpu().key())
    assert main(["slots", "--rule", "titans", "--budget", "100"]) == 0
    said = capsys.readouterr().out
    assert "the knee; 2 of 2 points measured" in said
    assert default_store().recommendation(cpu().key()) == before


def test_what_no_gpu_has_a_kernel_of_tvm_for_is_refused_by_its_variant(tmp_path: Path, capsys):
    assert main(["gpu-export", "--spec", "mine: rule=titans", "--out", str(tmp_path / "exports")]) == 2
    assert "mine: it cannot be exported: for CUDA there are TVM templates of" in capsys.readouterr().err


def test_one_spec_that_fails_does_not_end_the_run(templates, monkeypatch, capsys):
    (templates / "tvm" / "memory_update.py.j2").write_text("{{ missing.name }}")
    monkeypatch.setattr("tuner.cli.Workers", functools.partial(Workers, compilers=1))
    monkeypatch.setattr("tuner.cli.StudySession", functools.partial(StudySession, final_seconds=FINAL_SECONDS))
    specs = ["--spec", BROKEN_TEXT, "--spec", STEP_TEXT]
    assert main(["tune", *specs, "--budget", "1", "--no-slots", "--no-offline"]) == 1
    said = capsys.readouterr().out
    assert "'missing' is undefined" in said
    assert [record.spec for record in default_store().records(layer="user")] == [STEP.key()]


def test_nothing_is_shipped_before_anything_is_tuned(tmp_path: Path, capsys):
    assert main(["ship", "--folder", str(tmp_path / "winners")]) == 1
    assert "run `make tune` first" in capsys.readouterr().out
    assert not (tmp_path / "winners").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["tune", "--budget", "soon"], 2, "budget 'soon' is not one"),
        (["tune", "--spec", "x: heads=0"], 2, "heads=0 is out of range"),
        (["tune", "--workload", "/nowhere.yaml"], 2, "/nowhere.yaml"),
        (["tune", "--only", "nothing"], 2, "lists prefill"),
        (["tune", "--backend", "triton"], 1, "nothing can be tuned on"),
        (["tune", "--storage", "nonsense"], 1, "cannot use the study storage nonsense"),
        (
            ["report", "--file", "/nowhere/report.html"],
            1,
            "write the report to /nowhere/report.html: No such file",
        ),
        (["report", "--file", "/proc"], 1, "name another place with --file"),
        (["show", "--device", "sm_1"], 1, "'sm_1' is no known device"),
        (["prune", "--device", "sm_1"], 1, "'sm_1' is no known device"),
        (["prune", "--device", ""], 1, "'' is no known device"),
        (["tune", "--device", ""], 1, "'' is no known device"),
        (["tune", "--offline", "--device", ""], 1, "'' is no known device"),
    ],
)
def test_mistakes_are_said_in_a_line(capsys, arguments, code, said):
    assert main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert "Traceback" not in error


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", ["show", "report", "ship", "tune", "slots", "regret"])
def test_a_gpu_that_is_not_there_is_said_to_be_missing(capsys, command):
    assert main([command, "--device", "cuda"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no GPU was found for device 'cuda': ")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("url", "module", "package"),
    [
        ("postgresql://me:secret@host/name", "psycopg", "psycopg[binary]"),
        ("mysql://host/name", "MySQLdb", "mysqlclient"),
    ],
)
def test_a_missing_database_driver_is_named_with_what_installs_it(url, module, package, capsys, monkeypatch):
    # What Python looks up first: None there means that there is no such module.
    for name in [module, *(each for each in sys.modules if each.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["report", "--storage", url]) == 1
    error = capsys.readouterr().err
    assert f"; install its driver with .venv/bin/pip install '{package}', or give another with --storage\n" in error
    assert module in error.partition("; install")[0]
    assert "secret" not in error


def test_only_a_file_can_be_moved_away(tmp_path: Path):
    assert unusable("nonsense", ValueError("no URL")).advice == "give another with --storage"
    assert unusable(f"sqlite:///{tmp_path}", OSError("no file")).advice.endswith("or move that one away")


def test_a_storage_that_is_no_database_is_left_as_it_is(tmp_path: Path, capsys):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but dear to its owner")
    assert main(["report", "--storage", f"sqlite:///{path}"]) == 1
    assert "cannot use the study storage" in capsys.readouterr().err
    assert path.read_text() == "not a database, but dear to its owner"


def test_studies_of_others_in_a_storage_are_left_alone(capsys):
    storage = open_storage(default_url())
    study = optuna.create_study(storage=storage, study_name="someone else's")
    study.tell(study.ask(), 1.0)
    assert main(["report", "--text"]) == 0
    assert "someone" not in capsys.readouterr().out


def test_unknown_commands_and_help_end_as_usual(capsys):
    for arguments, code in ((["fly"], 2), ([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == code
    assert "tune" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2.00 s"), (0.0123, "12.3 ms"), (0.456, "456 ms"), (1.5e-5, "15.0 us"), (3e-8, "0.0300 us")],
)
def test_durations_have_three_digits_and_a_unit(seconds, text):
    assert duration(seconds) == text


def test_a_status_names_failures_by_kind():
    failures = {Outcome.wrong_answer: 2, Outcome.compile_error: 1}
    status = Status(trials=7, points=40, share=0.2, best=1e-3, default=2e-3, failures=failures)
    assert describe(status) == "best 1.00 ms, 2.00x the default; 7 of 40 tried (1 compile_error, 2 wrong_answer)"
