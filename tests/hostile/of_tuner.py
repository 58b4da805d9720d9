"""Entrances of the tuner: workloads, lists of candidates, studies, findings, and the pages that show records."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import optuna
import yaml
from rich.console import Console

from codegen.device import NAMED
from codegen.schedules.registry import default
from tests.hostile.entrance import Entrance
from tests.hostile.of_codegen import KEY, SPEC
from tests.tuning_db.examples import record
from trellis_ops.specs.workload import load_workload
from tuner.cli import main
from tuner.commands.command import print_lines
from tuner.gpu_run.ledger import Entry, Ledger
from tuner.offline import candidates
from tuner.offline.candidates import Guess, Ranked
from tuner.records.history import History
from tuner.report.report import known_lines
from tuner.report.why import why_lines
from tuner.studies.storage import StudyStorage
from tuner.studies.studies import StudyKey, open_storage, open_study
from tuner.workload import parse_spec
from tuning_db import Record, Store

TEXTS = ("spec", "backend", "template_digest", "schedule", "reason", "policy", "source")
"""Fields of a record that may hold more than a key of this project."""

_FIELDS = ("name", "operator", "dtype", "direction", "phi", "link", "out", "step_size", "heads", "phi_eps")
HOPPER = NAMED["sm_90"]


def _workload(change: Callable[[str], dict[str, object]]) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        path = given / "workload.yaml"
        path.write_text(yaml.safe_dump({"cpu": [{"name": "a", **change(name)}]}))
        for named in load_workload(path, "cpu"):
            # `python -m tuner gpu-export` writes into such a folder.
            (given / "exports" / named.name).mkdir(parents=True)
            assert (given / "exports" / named.name).parent == given / "exports"
            assert named.name.isprintable()

    return entrance


def _section(name: str, given: Path) -> None:
    path = given / "workload.yaml"
    path.write_text(yaml.safe_dump({name: [{"name": "a"}]}))
    load_workload(path, "cpu")


def _no_yaml(name: str, given: Path) -> None:
    (given / "workload.yaml").write_bytes(f"cpu: [{{name: {name}".encode(errors="surrogateescape"))
    load_workload(given / "workload.yaml", "cpu")


def _list(change: Callable[[dict[str, Any], str], None]) -> Entrance:
    """A list of candidates: read, written once more, and its schedules taken."""

    def entrance(name: str, given: Path) -> None:
        settings = default("tvm", SPEC, HOPPER).settings()
        plain = Ranked(
            name="a",
            spec=KEY,
            device=HOPPER.key(),
            template_digest="0",
            tried=1,
            pruned=0,
            guesses=(Guess(settings, 1e-3),),
        )
        content = msgspec.to_builtins(plain)
        change(content, name)
        path = given / "list.jsonl"
        path.write_bytes(msgspec.json.encode(content) + b"\n")
        found = candidates.read(path)
        candidates.write(found, path)
        assert candidates.read(path) == found
        for ranked in found:
            candidates.schedules_of(ranked, "tvm", HOPPER)

    return entrance


def _of_guess(content: dict[str, Any], name: str) -> None:
    content["guesses"][0]["settings"]["variant"] = name


def _field_of_guess(content: dict[str, Any], name: str) -> None:
    content["guesses"][0]["settings"][name] = 1


def _member(content: dict[str, Any], name: str) -> None:
    content[name] = 1


@functools.cache
def storage(folder: Path) -> StudyStorage:
    """The studies of a folder, one storage for all names: to make its tables takes a second."""
    return open_storage(f"sqlite:///{folder / 'studies.db'}")


def _study(field: str) -> Entrance:
    plain = StudyKey(KEY, "cpu-x", "tvm", "tvm 1", "0", "0", "cpu")

    def entrance(name: str, given: Path) -> None:
        key = StudyKey(**{**asdict(plain), field: name})
        study = open_study(storage(given.parent), key, optuna.samplers.RandomSampler(), lambda point: True)
        assert study.study_name == key.name()
        assert study.user_attrs[field] == name

    return entrance


def _url(name: str, given: Path) -> None:
    open_storage(name)


def record_with(field: str, name: str) -> Record:
    """A record that holds a name where its fields allow any text. Raises RecordError where they do not."""
    return record(**{field: {"variant": name} if field == "schedule" else name})


def _shown(field: str) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        store = Store(given / "user", given / "shipped")
        made = record_with(field, name)
        assert store.commit(made)
        console = Console(width=400)
        print_lines(console, known_lines(store, None))
        print_lines(console, why_lines(History(made, "user", None)))

    return entrance


def _ledger(field: str) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        entry = Entry(**{"stage": "correct", "name": "a", "state": "0", "ok": True, field: name})
        Ledger(given / "findings.jsonl").add(entry)
        assert Ledger(given / "findings.jsonl").of(entry.stage) in ([], [entry])

    return entrance


def _command(*arguments: str) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        code = main([each.replace("NAME", name).replace("GIVEN", str(given)) for each in arguments])
        assert code in (0, 1, 2)

    return entrance


ENTRANCES: dict[str, Entrance] = {
    **{f"{field} of a workload": _workload(lambda name, field=field: {field: name}) for field in _FIELDS},
    "a field of a workload": _workload(lambda name: {name: 1}),
    "a section of a workload": _section,
    "what is no YAML": _no_yaml,
    "--spec": lambda name, given: parse_spec(name),
    "the name of --spec": lambda name, given: parse_spec(f"{name}: heads=1"),
    "a field of --spec": lambda name, given: parse_spec(f"x: {name}=1"),
    "the operator of --spec": lambda name, given: parse_spec(f"x: operator={name}"),
    "what is no field of --spec": lambda name, given: parse_spec(f"x: {name}"),
    **{
        f"{field} of a list of candidates": _list(lambda content, name, field=field: content.update({field: name}))
        for field in ("name", "spec", "device", "template_digest", "tried")
    },
    "a setting of a candidate": _list(_of_guess),
    "a field of a candidate": _list(_field_of_guess),
    "a field of a list of candidates": _list(_member),
    **{f"{field} of a study": _study(field) for field in ("spec", "device")},
    "the storage of studies": _url,
    **{f"{field} of a record that is shown": _shown(field) for field in TEXTS},
    **{f"{field} of a finding": _ledger(field) for field in ("stage", "name", "state", "text")},
    "tuner show --device": _command("show", "--device=NAME"),
    "tuner tune --spec": _command("tune", "--offline", "--device=sm_90", "--spec=NAME"),
    "tuner report --storage": _command("report", "--text", "--storage=NAME"),
    "tuner export --device": _command("export", "--device=NAME", "GIVEN/exported"),
}
