"""The GPU run that a GPU is needed for, run on this CPU's kernels instead: the same stages, processes and files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from filelock import FileLock

from codegen.device import NAMED, cpu
from codegen.kernels.build import operator_digest
from codegen.kernels.exports.exported import MANIFEST
from codegen.rules import NAMED as RULES
from codegen.schedules.schedule import Schedule
from codegen.spec import spec_of_key
from trellis_ops.specs.workload import NamedSpec, load_workload
from tuner.gpu_run import correctness, sanitizer
from tuner.gpu_run.__main__ import DEFAULT_FILES, _workload, main
from tuner.gpu_run.correctness import kernels_to_check
from tuner.gpu_run.exported import FOLDER
from tuner.gpu_run.findings import is_whole
from tuner.gpu_run.ledger import Entry, Ledger, LedgerError
from tuner.gpu_run.plan import GpuRun
from tuner.gpu_run.precision import precisions
from tuner.gpu_run.tables import page
from tuner.gpu_run.warm_up import RIVALS, WarmUp
from tuner.measure.baselines.rivals import is_of_rules
from tuner.measure.side_by_side import KERNEL, _able, compiled_spec
from tuner.measure.timed import Timed
from tuner.offline import candidates
from tuner.offline.family_specs import specs_of_every_form
from tuner.policy import policy_for
from tuner.space.legal import changes, legal_schedules
from tuner.workers.pool import Workers
from tuner.workload import DEFAULT_FILE
from tuning_db import Store

ROOT = Path(__file__).resolve().parents[3]
WORKLOAD = """
cpu:
  - {name: prefill, operator: trellis_attention, batch: 1, tokens: 64, heads: 2, dim: 8, slots: 8, chunk: 16}
  - {name: decode, operator: trellis_step, batch: 2, tokens: 1, heads: 2, dim: 8, slots: 8, chunk: 1}
"""
OF_RULES = """
cpu:
  - {name: gla, rule: gla, batch: 1, tokens: 20, heads: 2, dim: 8}
"""
WITHOUT = "import sys\nsys.modules.update(dict.fromkeys(['optuna', 'rich', 'scipy', 'plotly', 'sqlalchemy']))\n"
SHORTLY = """
import functools, sys
from tuner.gpu_run import __main__, timing, tuning
timing.SECONDS = tuning.FINAL_SECONDS = 0.1
__main__.Workers = functools.partial(__main__.Workers, compilers=1)
sys.exit(__main__.main())
"""


def entry(stage: str = "correct", name: str = "one", ok: bool = True, **values) -> Entry:
    return Entry(stage=stage, name=name, state="s", ok=ok, text="" if ok else "wrong_answer: y", values=values)


def test_a_ledger_goes_on_after_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "findings.jsonl"
    Ledger(path).add(entry())
    path.write_bytes(path.read_bytes() + b'{"stage": "corr')
    ledger = Ledger(path)
    assert ledger.find("correct", "one", "s") is not None
    assert ledger.find("correct", "one", "other templates") is None
    ledger.add(entry(name="two"))
    assert [each.name for each in Ledger(path).of("correct")] == ["one", "two"]


def test_the_page_says_what_is_wrong_and_what_was_left_out(tmp_path):
    ledger = Ledger(tmp_path / "findings.jsonl")
    ledger.add(entry())
    ledger.add(entry(name="two", ok=False))
    ledger.add(entry(stage="tuned", name="prefill", ok=False))
    text = page(ledger, "a-card", ["the sanitizer: none"])
    assert "1 of 2 passed." in text
    assert "- two: wrong_answer: y" in text
    assert "- Left out: the sanitizer: none" in text
    assert "| prefill | wrong_answer: y |" in text


def arguments(tmp_path: Path, minutes: str = "60") -> list[str]:
    """Of a GPU run on this CPU that ends when nothing is left: no test waits for its time."""
    (tmp_path / "workload.yaml").write_text(WORKLOAD)
    (tmp_path / "rules.yaml").write_text(OF_RULES)
    files = [f"--workload={tmp_path / name}" for name in ("workload.yaml", "rules.yaml")]
    options = ["--device", "cpu", *files, "--minutes", minutes, "--most", "2"]
    return [*options, "--folder", str(tmp_path / "home"), "--candidates", str(tmp_path / "lists")]


def run(tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """A GPU run of few worker processes, each of which takes seconds to start, where Optuna cannot be imported."""
    (tmp_path / "without").mkdir(exist_ok=True)
    (tmp_path / "without" / "sitecustomize.py").write_text(WITHOUT)
    return subprocess.run(
        [sys.executable, "-c", SHORTLY, *arguments(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{tmp_path / 'without'}:{ROOT}"},
    )


def prepare(tmp_path: Path) -> list[Schedule]:
    """Write a list of two candidates for the first spec, neither of them its default; what a run of two measures."""
    named = workload(tmp_path)[0]
    default, *others = legal_schedules(named.spec, "tvm", cpu())
    chosen = sorted(others, key=lambda each: -changes(each, default))[:2]
    ranked = candidates.Ranked(
        name=named.name,
        spec=named.spec.key(),
        device=cpu().key(),
        template_digest=operator_digest(named.spec.problem, "tvm"),
        tried=2,
        pruned=0,
        guesses=tuple(candidates.Guess(each.settings(), 1e-6 * (place + 1)) for place, each in enumerate(chosen)),
    )
    candidates.write([ranked], candidates.path_for(cpu(), tmp_path / "lists"))
    return [default, chosen[0]]


def workload(tmp_path: Path) -> tuple[NamedSpec, ...]:
    (tmp_path / "workload.yaml").write_text(WORKLOAD)
    return load_workload(tmp_path / "workload.yaml", "cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder of a GPU run that has nothing left to do, and its process."""
    folder = tmp_path_factory.mktemp("gpu-run")
    prepare(folder)
    return folder, run(folder)


def test_a_gpu_run_without_optuna_checks_tunes_and_times_and_goes_on_where_it_was(whole):
    tmp_path, done = whole
    assert done.returncode == 0, done.stdout + done.stderr
    assert "optuna" not in done.stdout
    folder = tmp_path / "home" / cpu().key()
    ledger = Ledger(folder / "findings.jsonl")
    assert {each.name for each in ledger.of("tuned")} == {"prefill", "decode", "gla"}
    assert all(each.ok for each in ledger.of("correct"))
    forms = {each.name.partition(",")[0] for each in ledger.of("correct") if each.name.startswith("gla ")}
    assert forms == {f"gla tvm:variant={variant}" for variant in ("recurrence", "chunks", "stale_chunks")}
    timed = {each.name: each for each in ledger.of("timed")}
    for name in ("prefill", "gla"):
        assert {"kernel", "eager", "one head alone"} <= timed[name].values["seconds"].keys()
    assert "chunk_gla left out: it was not compiled in the time there was" in timed["gla"].text
    records = Store(folder / "winners").records(cpu().key(), "user")
    assert {spec_of_key(each.spec).problem.operator for each in records} == {
        *("trellis_attention", "trellis_step", "memory_attention")
    }
    assert {each.source for each in records} == {"python -m tuner.gpu_run"}
    tables = (folder / "tables.md").read_text()
    assert "| decode |" in tables
    assert "the time was up" not in tables
    before = (folder / "findings.jsonl").read_bytes()
    assert main(arguments(tmp_path)) == 0, "Optuna, which is here, makes no difference"
    assert (folder / "findings.jsonl").read_bytes() == before


def test_the_prepared_candidates_are_measured_after_the_default_and_no_more_than_asked_for(whole):
    tmp_path, _ = whole
    ledger = Ledger(tmp_path / "home" / cpu().key() / "findings.jsonl")
    measured = [each.name.split(" ", 1) for each in ledger.of("measured")]
    assert [key for name, key in measured if name == "prefill"] == [each.key() for each in prepare(tmp_path)]
    assert [name for name, _ in measured].count("decode") == 2
    assert [each.values["tried"] for each in ledger.of("tuned")] == [2, 2, 2]


def test_a_gpu_run_whose_time_is_up_says_what_is_left(tmp_path, capsys):
    assert main(arguments(tmp_path, minutes="0.0001")) == 0
    text = (tmp_path / "home" / cpu().key() / "tables.md").read_text()
    assert "kernels were not checked; the time was up" in text
    assert "not tuned: prefill, decode, gla" in text
    assert "after the default, those legal schedules are tried first that are nearest to the best" in text


@pytest.mark.parametrize("minutes", ["-1", "0", "nan", "inf", "soon"])
def test_a_time_that_is_none_is_refused(minutes, capsys):
    with pytest.raises(SystemExit):
        main(["--device", "cpu", "--minutes", minutes])
    assert f"{minutes!r} is no time in minutes" in capsys.readouterr().err


def test_a_second_run_into_a_folder_is_refused_while_the_first_goes_on(tmp_path, capsys):
    folder = tmp_path / cpu().key()
    folder.mkdir()
    with FileLock(folder / ".gpu-run.lock"):
        assert main(["--device", "cpu", "--minutes", "0.0001", "--folder", str(tmp_path)]) == 1
    assert f"another GPU run writes to {folder}" in capsys.readouterr().err
    assert not (folder / "findings.jsonl").exists()


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert main(["--minutes", "0.0001"]) == 1
    assert "torch sees no GPU here" in capsys.readouterr().err


def test_a_name_that_two_workloads_have_is_refused(tmp_path, capsys):
    (tmp_path / "workload.yaml").write_text(WORKLOAD)
    twice = [f"--workload={tmp_path / 'workload.yaml'}"] * 2
    assert main(["--device", "cpu", "--minutes", "0.0001", "--folder", str(tmp_path / "home"), *twice]) == 1
    assert "'prefill' is in another file too" in capsys.readouterr().err


def test_every_named_rule_is_checked_tuned_and_timed_on_a_gpu():
    workload = _workload(DEFAULT_FILES, NAMED["sm_90"])
    assert {each.spec.rule for each in workload if is_of_rules(each.spec)} >= {
        each.rule for each in RULES.values() if not each.rule.is_trellis
    }
    checked = {(each.spec.rule, each.spec.problem.direction) for each in specs_of_every_form()}
    assert checked >= {(each.rule, direction) for each in RULES.values() for direction in ("forward", "backward")}


def test_the_sanitizer_is_left_out_where_it_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not on the PATH" in sanitizer.why_left_out(NAMED["sm_90"])
    assert "NVIDIA" in sanitizer.why_left_out(cpu())


SANITIZER = """#!/bin/sh
echo "$2" >> "$(dirname "$0")/asked"
case "$2 $*" in racecheck*memory_readout_transposed*) echo "1 hazard"; exit 9;; esac
echo "ERROR SUMMARY: 0 errors"
"""


def hopper_run(tmp_path: Path) -> GpuRun:
    return GpuRun(
        device=NAMED["sm_90"],
        backend="triton",
        workload=load_workload(DEFAULT_FILE, "cuda"),
        workers=Workers(),
        ledger=Ledger(tmp_path / "findings.jsonl"),
        store=Store(tmp_path / "winners"),
        candidates=tmp_path,
        seconds=6000.0,
    )


def test_kernels_are_examined_together_and_alone_where_a_sanitizer_that_is_faked_here_finds_something(
    monkeypatch, tmp_path
):
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(SANITIZER)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    # Of all forms of all rules two specs are enough here.
    monkeypatch.setattr(correctness, "specs_of_every_form", lambda: specs_of_every_form()[:2])
    exported = tmp_path / FOLDER / "one" / MANIFEST
    exported.parent.mkdir(parents=True)
    exported.write_text("{}")
    run = hopper_run(tmp_path)
    found = list(sanitizer.sanitize_all(run))
    kernels = kernels_to_check(run)
    assert len(found) == 2 * (len(kernels) + 1)
    assert {"memcheck exported one", "racecheck exported one"} < {each.name for each in found}
    bad = [each for each in found if not each.ok]
    assert [each.name.split()[:2] for each in bad] == [["racecheck", "readout_transposed"]]
    assert bad[0].text == "1 hazard"
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(kernels) < len(asked) * 2 < 2 * len(found), "several in one process, and few of them again"
    assert list(sanitizer.sanitize_all(run)) and len((tmp_path / "asked").read_text().splitlines()) == len(asked)


def test_precisions_that_keep_fewer_bits_than_the_inputs_have_are_not_timed(tmp_path):
    names = [name for name, _, _ in precisions(hopper_run(tmp_path))]
    assert {"float32 ieee", "float32 tf32x3", "float16 tf32", "bfloat16 bf16"} <= set(names)
    assert not {"float32 tf32", "float32 bf16", "float16 bf16"} & set(names)


def test_rivals_are_not_run_ahead_on_a_cpu_and_are_known_by_what_their_process_says(tmp_path):
    workload = load_workload(DEFAULT_FILE, "cpu")
    with WarmUp(cpu(), workload, tmp_path / "log") as warm:
        warm.wait(RIVALS, 0.0)
        assert not warm.ready(workload[0].spec)
        lines = f"autotuning...\nchunk_gsa {workload[0].spec.key()}"
        said = subprocess.Popen(["echo", lines], stdout=subprocess.PIPE, text=True)
        warm.listen(said)
        assert warm.ready(workload[0].spec) == {"chunk_gsa"}
        assert not warm.ready(workload[1].spec)


def test_what_a_rival_has_started_ends_with_it_and_holds_nothing_up(tmp_path):
    with WarmUp(cpu(), (), tmp_path / "log") as warm, (tmp_path / "said").open("w") as said:
        warm.start(RIVALS, ["sh", "-c", "sleep 600 & echo $! > $0; wait", str(tmp_path / "pid")], said)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            time.sleep(0.01)
        warm.wait(RIVALS, 0.0)
        child = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
        assert not child.exists() or child.read_text().split()[2] == "Z"


def test_what_torch_compile_gets_is_short_enough_to_be_unrolled():
    for named in load_workload(DEFAULT_FILE, "cuda"):
        problem, short = named.spec.problem, compiled_spec(named.spec).problem
        assert short.tokens == min(problem.tokens, max(8 * problem.chunk, 32))
        assert replace(short, tokens=problem.tokens) == problem


def test_a_wrong_kernel_ends_the_gpu_run_with_failure(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path, dirs_exist_ok=True)
    findings = tmp_path / "home" / cpu().key() / "findings.jsonl"
    found = [msgspec.json.decode(line) for line in findings.read_bytes().splitlines()]
    checked = next(each for each in found if each["stage"] == "correct")
    checked |= {"ok": False, "text": "wrong_answer: y"}
    findings.write_bytes(b"\n".join(map(msgspec.json.encode, found)))
    assert main(arguments(tmp_path)) == 1
    assert "BAD" in capsys.readouterr().out


def test_a_rival_that_fails_is_left_out_and_costs_no_other_its_time():
    def fail() -> None:
        raise RuntimeError("no such operation in a graph")

    calls = {KERNEL: Timed(lambda: None, lambda: None), "bad": Timed(fail, lambda: None)}
    left_out: dict[str, str] = {}
    assert list(_able(calls, cpu(), policy_for(cpu()), left_out)) == [KERNEL]
    assert left_out == {"bad": "it failed: RuntimeError: no such operation in a graph"}
    with pytest.raises(RuntimeError):
        _able({KERNEL: calls["bad"]}, cpu(), policy_for(cpu()), {})


HOSTILE_LINES = [
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"stage": "measured", "name": "n", "state": "s", "ok": true, "values": ' + b'{"a":' * 100_000,
    b'{"stage": "measured", "name": "n", "state": "s", "ok": true}',
    b'{"stage": "measured", "name": "n", "state": "s", "ok": true, "values": {"seconds": "soon"}}',
    b'{"stage": "measured", "name": "n", "state": "s", "ok": true, "values": {"seconds": -1}}',
    b'{"stage": "measured", "name": "n", "state": "s", "ok": false, "values": {"outcome": "tired"}}',
    b'{"stage": "tuned", "name": "n", "state": "s", "ok": true, "values": {"schedule": 3}}',
    b'{"stage": "timed", "name": "n", "state": "s", "ok": true, "values": {"seconds": {"eager": 1.0}}}',
    b'{"stage": "precision", "name": "n", "state": "s", "ok": false, "values": {}}',
    b'{"stage": "tvm", "name": "n", "state": "s", "ok": true, "values": {"errors": [], "seconds": null}}',
    b'{"stage": "tvm", "name": "n", "state": "s", "ok": true, "values": {"errors": {}, "seconds": 1e400}}',
]


def test_findings_that_nobody_made_are_passed_over(tmp_path):
    path = tmp_path / "findings.jsonl"
    Ledger(path).add(entry())
    path.write_bytes(path.read_bytes() + b"\n".join(HOSTILE_LINES))
    ledger = Ledger(path)
    assert [len(ledger.of(stage)) for stage in ("correct", "measured", "tuned", "timed", "precision", "tvm")] == [
        1,
        *[0] * 5,
    ]
    assert page(ledger, "a device", [])


def test_the_findings_that_are_kept_in_the_documents_are_whole():
    for path in sorted((Path(__file__).parents[3] / "docs" / "measured").glob("nvidia-*.jsonl")):
        lines = [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()]
        assert all(is_whole(each.stage, each.ok, each.values) for each in lines), path


def test_a_pipe_in_place_of_the_findings_hangs_nobody(tmp_path):
    os.mkfifo(tmp_path / "findings.jsonl")
    with pytest.raises(LedgerError, match="not a regular file; move it away"):
        Ledger(tmp_path / "findings.jsonl")
