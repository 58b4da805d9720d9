"""The GPU run's stage for exported operators: on an emulated GPU, and in processes that die."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec
import pytest
import torch

from codegen.backends.tvm_cuda import nvcc
from codegen.device import NAMED, Device, cpu
from codegen.kernels.exports.export import export
from codegen.kernels.exports.exported import MANIFEST, read_manifest
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.emulators.emulated_cuda import COMPILER
from tests.emulators.emulated_driver import emulated_operator
from tuner.cli import main
from tuner.commands.gpu_export import LISTED, wanted
from tuner.gpu_run import exported
from tuner.gpu_run.exported import STAGE, Found, check_exported, examine_all, examined, exports_in, why_left_out
from tuner.gpu_run.ledger import Ledger
from tuner.gpu_run.plan import GpuRun

HOPPER = NAMED["sm_90"]
ROOT = Path(__file__).resolve().parents[3]
SMALL = Spec(Rule(), Problem("trellis_step", 2, 1, 2, 8, 8, 8, 1, "bfloat16"))
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two exports."""
    monkeypatch.setattr(nvcc, "is_here", lambda: False)
    for name in ("one", "two"):
        export(SMALL, default("tvm", SMALL, HOPPER), HOPPER, tmp_path / "exports" / name)
    return tmp_path / "exports"


def gpu_run(tmp_path: Path, device: Device = HOPPER, seconds: float = 600.0) -> GpuRun:
    """What this stage needs of one."""
    ledger = Ledger(tmp_path / "findings.jsonl")
    nothing = {"workers": None, "store": None, "candidates": tmp_path, "workload": ()}
    return GpuRun(device=device, backend="triton", ledger=ledger, seconds=seconds, **nothing)


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
def test_an_export_is_checked_and_timed_on_an_emulated_gpu(exports, tmp_path):
    found = examined("one", emulated_operator(exports / "one", tmp_path / "emulated"))
    assert found.ok, found.text
    assert found.text == "right"
    assert found.errors.keys() == {"y", "S_k", "S_v"}
    assert max(found.errors.values()) < 2e-2
    assert found.seconds > 0


@pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"{COMPILER} is not installed")
def test_a_wrong_order_of_parameters_is_found_on_an_emulated_gpu(exports, tmp_path):
    path = exports / "one" / MANIFEST
    manifest = read_manifest(exports / "one")
    (part,) = manifest.parts
    swapped = {"q": "k", "k": "q"}
    passed = tuple(swapped.get(name, name) for name in part.plan.passed)
    part = msgspec.structs.replace(part, plan=msgspec.structs.replace(part.plan, passed=passed))
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(manifest, parts=(part,))))
    found = examined("one", emulated_operator(exports / "one", tmp_path / "emulated"))
    assert not found.ok
    assert found.text.startswith("wrong_answer: y: relative error")
    assert found.seconds is None


@NO_GPU
def test_without_a_gpu_every_export_is_a_finding_that_says_so(exports, tmp_path, monkeypatch):
    # The folder where it is started has another tuner.
    (tmp_path / "tuner").mkdir()
    (tmp_path / "tuner" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    found = list(examine_all(exports_in(exports)))
    assert [(each.name, each.ok) for each in found] == [("one", False), ("two", False)]
    assert all("torch sees no GPU" in each.text for each in found)


@NO_GPU
def test_the_stage_needs_neither_tvm_nor_optuna(exports, tmp_path):
    blocked = ["tvm", "tvm_ffi", "optuna", "rich", "scipy", "plotly", "sqlalchemy"]
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n")
    done = subprocess.run(
        [sys.executable, "-m", "tuner.gpu_run.exported", str(exports / "one")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    found = msgspec.json.decode(done.stdout, type=Found)
    assert "torch sees no GPU" in found.text, done.stderr


@pytest.fixture
def as_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a shell script do the work of the processes that examine."""

    def become(text: str) -> None:
        script = tmp_path / "process"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(exported.sys, "executable", str(script))

    return become


def line(found: Found) -> str:
    return f"echo '{msgspec.json.encode(found).decode()}'"


def test_a_process_that_dies_is_a_finding_and_the_others_go_on(as_process):
    right = [line(Found(name, True, "right")) for name in ("one", "three")]
    as_process(f'case "$4" in one) {right[0]}; echo bad access >&2; kill -9 $$;; two) exit 7;; *) {right[1]};; esac')
    found = list(examine_all([Path("one"), Path("two"), Path("three")]))
    assert [(each.name, each.ok) for each in found] == [("one", True), ("two", False), ("three", True)]
    assert found[1].text.startswith("its process ended with -9: bad access")


def test_after_a_wrong_answer_another_process_goes_on(as_process, tmp_path):
    bad, good = (line(Found(name, name == "two", "")) for name in ("one", "two"))
    as_process(f'echo "$4" >> {tmp_path}/begun; case "$4" in one) {bad}; sleep 60;; *) {good};; esac')
    assert [each.ok for each in examine_all([Path("one"), Path("two")])] == [False, True]
    assert (tmp_path / "begun").read_text().split() == ["one", "two"]


def test_a_process_that_takes_too_long_is_a_finding(as_process):
    as_process("exec sleep 60")
    (found,) = examine_all([Path("one")], patience=0.2)
    assert (found.name, found.ok, found.text) == ("one", False, "no answer within 0.2 s")


def test_findings_are_kept_and_not_found_twice(exports, tmp_path, monkeypatch):
    begun: list[list[Path]] = []

    def examine(folders, patience):
        assert 0 < patience <= exported.PATIENCE
        begun.append(list(folders))
        yield from (Found(path.name, True, "right", {"y": 1e-3}, 1e-4, 0.01) for path in folders)

    monkeypatch.setattr(exported, "examine_all", examine)
    entries = list(check_exported(gpu_run(tmp_path), exports))
    assert [(each.stage, each.name, each.ok) for each in entries] == [(STAGE, "one", True), (STAGE, "two", True)]
    assert entries[0].values == {"errors": {"y": 1e-3}, "seconds": 1e-4, "spread": 0.01}
    assert [each.name for each in check_exported(gpu_run(tmp_path), exports)] == ["one", "two"]
    assert begun == [[exports / "one", exports / "two"], []]
    other = SMALL.problem.__class__(**{**vars(SMALL.problem), "slots": 16})
    export(Spec(Rule(), other), default("tvm", SMALL, HOPPER), HOPPER, exports / "two")
    list(check_exported(gpu_run(tmp_path), exports))
    assert begun[-1] == [exports / "two"]


def test_where_the_time_is_up_or_no_nvidia_card_is_nothing_is_run(exports, tmp_path):
    assert list(check_exported(gpu_run(tmp_path, seconds=0.0), exports)) == []
    assert list(check_exported(gpu_run(tmp_path, device=cpu()), exports)) == []
    assert list(check_exported(gpu_run(tmp_path), tmp_path / "none")) == []
    assert "NVIDIA" in why_left_out(cpu(), exports)
    assert "no operator for sm_90 in" in why_left_out(HOPPER, tmp_path / "none")
    assert why_left_out(HOPPER, exports) is None


def test_programs_for_another_architecture_are_not_run(exports, tmp_path):
    assert list(check_exported(gpu_run(tmp_path, device=NAMED["sm_80"]), exports)) == []
    assert "no operator for sm_80 in" in why_left_out(NAMED["sm_80"], exports)


def test_what_libraries_print_is_no_finding(as_process):
    as_process(f"echo loading; {line(Found('one', True, 'right'))}")
    assert [each.name for each in examine_all([Path("one")])] == ["one"]


def test_an_export_of_other_templates_says_so(exports, monkeypatch):
    assert exported._why_stale(exports / "one") is None
    monkeypatch.setattr(exported, "templates_digest", lambda *_: "other")
    assert "other templates" in cast(str, exported._why_stale(exports / "one"))


def test_what_is_exported_unless_asked_otherwise():
    named = {each.name: each.spec.problem for each in wanted(None, ())}
    assert set(named) == set(LISTED)
    assert all((each.dtype, each.dim_k, each.slots) == ("bfloat16", 64, 64) for each in named.values())


def test_the_command_exports_a_spec_that_is_typed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(nvcc, "is_here", lambda: False)
    typed = "mine: operator=trellis_step, tokens=1, dim=8, slots=8, chunk=1"
    assert main(["gpu-export", "--out", str(tmp_path), "--spec", typed]) == 0
    assert read_manifest(tmp_path / "mine").parts[0].kernel == "memory_step"
    assert "only sources were written" in capsys.readouterr().out
    backward = "mine: direction=backward, dim=8, slots=8"
    assert main(["gpu-export", "--out", str(tmp_path), "--spec", backward]) == 2
    assert "cannot be exported" in capsys.readouterr().err
