from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

from codegen.backends import Resources
from codegen.device import NAMED
from codegen.kernels.build import operator_digest
from codegen.schedules.registry import default, variants_of
from codegen.schedules.schedule import SUBSTITUTIONS
from codegen.schedules.triton import TritonSchedule
from tests.support.winner_record import winner_record
from tests.tuner.conftest import STEP
from tuner.cli import main
from tuner.offline.family_specs import family_specs
from tuner.offline.gpu_check import (
    DEFAULT,
    DEVICES,
    OTHER,
    SAMPLED,
    SHIPPED,
    Checked,
    Job,
    check,
    check_one,
    jobs,
    specs,
)
from tuner.offline.occupancy import occupancy
from tuner.offline.offline import examine
from tuning_db import Outcome, Record, Store, utc_now

HOPPER = NAMED["sm_90"]


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> list[Job]:
    """The defaults, and a winner as it is shipped, for an H200 not here: to find all legal schedules takes seconds."""
    winners, spec = tmp_path_factory.mktemp("winners"), next(each.spec for each in specs() if each.name == "prefill")
    schedule = TritonSchedule("split", 64, 4, 3, "bf16", ptxas="blackwell", loads="descriptors")
    Store(user=winners, shipped=winners).commit(
        winner_record(
            spec,
            schedule,
            device=HOPPER.key(),
            backend="triton",
            template_digest=operator_digest(spec.problem, "triton"),
        )
    )
    return list(jobs(["sm_90"], 0, Store(tmp_path_factory.mktemp("tuning_db"), winners)))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, listed) -> list[Checked]:
    """A forward default of each form, and the winner."""
    todo = [*firsts_of_forms(listed), *(job for job in listed if job.role == SHIPPED)]
    return compiled_of(todo, tmp_path_factory.mktemp("cache"))


def compiled_of(todo: Sequence[Job], cache: Path) -> list[Checked]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRELLIS_OPS_CACHE", str(cache))
        return list(check(todo, processes=2))


def firsts_of_forms(listed: Iterable[Job]) -> list[Job]:
    """The first forward default of each backend, variant, operator and type; others differ in sizes or in the rule."""
    firsts: dict[tuple[str, ...], Job] = {}
    for job in filter(is_forward, listed):
        problem, schedule = job.spec.problem, job.schedule
        firsts.setdefault((schedule.backend, schedule.variant, problem.operator, problem.dtype), job)
    return list(firsts.values())


def is_forward(job: Job) -> bool:
    return job.spec.problem.direction == "forward" and job.role != SHIPPED


def require_no_spills(done: Iterable[Checked]) -> None:
    for one in done:
        assert not one.fails, (one.job.name, one.fault)
        if one.job.schedule.backend == "tvm" and not shutil.which("nvcc"):
            assert one.needs is None
            continue
        assert one.needs is not None, one.fault
        assert one.needs.registers > 0
        assert 0 < one.occupancy <= 1
        in_float32 = one.job.spec.problem.dtype == "float32" and one.job.schedule.variant in SUBSTITUTIONS
        assert one.needs.spill_bytes == 0 or in_float32


@pytest.fixture
def only(monkeypatch) -> Callable[..., None]:
    """Lists the specs of these names alone: to find the legal schedules of all takes seconds."""
    every = specs()

    def choose(*names: str) -> None:
        monkeypatch.setattr("tuner.offline.gpu_check.specs", lambda: tuple(e for e in every if e.name in names))
        monkeypatch.setattr("tuner.offline.gpu_check.family_specs", tuple)

    return choose


@pytest.mark.parametrize("name", ["train", "train-c16"])
def test_the_training_workload_compiles_for_hopper_and_does_not_spill(name, only, store):
    only(name)
    (job,) = (job for job in jobs(["sm_90"], 0, store) if job.role == DEFAULT)
    done = check_one(job)
    assert len(done) == 8
    assert [(one.job.name, one.kernel, one.fault) for one in done if one.fault] == []
    assert {one.needs.spill_bytes for one in done} == {0}


def test_a_forward_default_of_each_form_compiles_for_hopper_and_does_not_spill(compiled):
    done = [one for one in compiled if is_forward(one.job)]
    require_no_spills(done)
    kernels = {one.kernel for one in done}
    of_rules = {"memory_pool", "memory_chunks", "recurrence", "stale_chunks", "exact_update"}
    of_layers = {"norm_step", "mixer_step", "swiglu_step"}
    assert kernels == {"trellis_update", "memory_step", "memory_update", "memory_readout"} | of_rules | of_layers
    prefill = [one for one in done if one.job.name == "prefill" and one.job.schedule.backend == "triton"]
    assert len(prefill) == 2
    assert all(one.needs.wgmma > 0 for one in prefill)


def test_the_other_forward_defaults_compile_for_hopper_and_do_not_spill(listed, tmp_path):
    firsts = firsts_of_forms(listed)
    others = [job for job in listed if is_forward(job) and job not in firsts]
    done = compiled_of(others, tmp_path)
    assert {one.job for one in done} == set(others)
    require_no_spills(done)


def test_every_forward_spec_has_a_default(listed):
    every = (*specs(), *family_specs())
    forward = {each.name for each in every if each.spec.problem.direction == "forward"}
    assert {job.name for job in listed if is_forward(job)} == forward


def test_what_is_shipped_for_a_gpu_and_is_no_default_compiles_and_does_not_spill(compiled):
    done = [one for one in compiled if one.job.role == SHIPPED]
    assert {one.kernel for one in done} == {"trellis_update", "memory_readout"}
    assert [(one.job.spec.key(), one.kernel, one.fault) for one in done if one.fault] == []


def test_kernels_of_tvm_are_sampled_and_those_of_equal_specs_listed_once(store, only):
    only("update", "prefill", "prefill-f32")
    by_tvm = [job for job in jobs(["sm_90"], 2, store) if job.schedule.backend == "tvm"]
    assert {job.name for job in by_tvm if job.role == SAMPLED} == {"update", "prefill", "prefill-f32"}
    assert {"bf16", "tf32x3"} <= {job.schedule.dot_precision for job in by_tvm if job.role == DEFAULT}
    names = [each.name for each in specs()]
    assert "prefill" in names and "prefill-few-heads" not in names


def test_the_workload_of_the_tuned_architecture_answers_for_spills(store, only):
    only("train", "train-m128", "decode")
    roles = {(job.name, job.device.arch): job.role for job in jobs(["sm_90", "sm_80"], 0, store)}
    assert roles["train", "sm_90"] == roles["decode", "sm_90"] == DEFAULT
    assert roles["train-m128", "sm_90"] == roles["train", "sm_80"] == OTHER


@pytest.mark.parametrize("arch", DEVICES)
def test_every_form_of_a_rule_is_compiled_as_a_default_would_be(store, listed, arch):
    """Forward substitution, which no default has, for a loss and for a map, in one pass and in two."""
    found = listed if arch == HOPPER.arch else list(jobs([arch], 0, store))
    variants = {job.schedule.variant for job in found if job.role in (DEFAULT, OTHER)}
    of_rules = (variants_of("memory_attention", "triton", direction) for direction in ("forward", "backward"))
    assert variants >= {"substitution"}.union(*of_rules)
    substituted = {job.name: job.role for job in found if job.schedule.variant in SUBSTITUTIONS}
    assert substituted.keys() >= {"yaad", "moneta", "gated_deltanet", "exact", "trellis-softmax"}
    assert substituted["moneta"] == substituted["trellis-softmax"] == (DEFAULT if arch == "sm_90" else OTHER)


def test_a_default_that_spills_fails_and_a_sample_that_spills_does_not(store, only, monkeypatch):
    only("prefill-f32")
    found = (job for job in jobs(["sm_90"], 0, store) if job.name == "prefill-f32")
    (job,) = (job for job in found if job.schedule.backend == "triton")
    bad = replace(job, role=DEFAULT, schedule=replace(job.schedule, tile_rows=64))
    examined = examine(bad.spec, bad.schedule, bad.device)
    monkeypatch.setattr("tuner.offline.gpu_check.examine", lambda *asked: examined)
    found = check_one(bad)
    assert "trellis_update spills" in found[0].fault
    assert found[0].fails
    assert not check_one(replace(bad, role=OTHER))[0].fails
    assert not check_one(replace(bad, role=SAMPLED))[0].fails


def test_shipped_winners_are_compiled_unless_their_templates_are_gone(store, only):
    from codegen.kernels.build import operator_digest

    only()
    schedule = default("triton", STEP, HOPPER)
    record = Record(
        spec=STEP.key(),
        bucket=STEP.key(),
        device=HOPPER.name,
        backend="triton",
        template_digest=operator_digest(STEP.problem, "triton"),
        schedule=schedule.settings(),
        outcome=Outcome.ok,
        seconds=1.0,
        created=utc_now(),
    )
    store.ship(HOPPER.name, [record])
    assert [job.spec for job in jobs(["sm_90"], 0, store) if job.role == "shipped"] == [STEP]
    older = Store(None, store.shipped.folder.parent / "older")
    older.ship(HOPPER.name, [replace_record(record, template_digest="0123456789abcdef")])
    assert not [job for job in jobs(["sm_90"], 0, older) if job.role == "shipped"]


def test_a_winner_that_is_sampled_too_is_judged_as_what_is_shipped(store, only):
    prefill = next(each for each in specs() if each.name == "prefill")
    only("prefill")
    sampled = next(job.schedule for job in jobs(["sm_90"], 1, store) if job.role == SAMPLED)
    digest = operator_digest(prefill.spec.problem, "triton")
    record = winner_record(prefill.spec, sampled, device=HOPPER.key(), backend="triton", template_digest=digest)
    store.ship(HOPPER.name, [record])
    assert [job.role for job in jobs(["sm_90"], 1, store) if job.schedule == sampled] == [SHIPPED]


def replace_record(record: Record, **changes) -> Record:
    from msgspec.structs import replace as replaced

    return replaced(record, **changes)


def test_every_device_has_its_own_schedules(store, only):
    only("prefill-f32")
    for arch, precision in (("sm_80", "tf32x3"), ("gfx942", "ieee")):
        chosen = [job.schedule for job in jobs([arch], 2, store) if job.name == "prefill-f32"]
        assert len(chosen) == 4
        assert [each.variant for each in chosen[:2]] == ["split", "fused"], "and two of any kind"
        if arch == "gfx942":
            assert {schedule.dot_precision for schedule in chosen} <= {"ieee", "bf16x3"}
        else:
            assert chosen[0].dot_precision == precision


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "share"),
    [
        (32, 0, 8, 1.0),
        (128, 0, 8, 0.25),
        (255, 0, 8, 0.125),
        (32, 100_000, 8, 0.25),
        (255, 0, 32, 0.0),
        (32, 0, 1, 0.5),
    ],
)
def test_occupancy_is_what_registers_shared_memory_and_blocks_allow(registers, shared, warps, share):
    schedule = TritonSchedule("fused", 16, warps, 1, "tf32")
    assert occupancy(Resources(registers, 0, shared), schedule, HOPPER) == share


def test_occupancy_of_amd_counts_waves():
    schedule = TritonSchedule("fused", 16, 4, 1, "tf32")
    assert occupancy(Resources(64, 0, 0), schedule, NAMED["gfx942"]) == 1.0
    assert occupancy(Resources(128, 0, 0), schedule, NAMED["gfx942"]) == 0.5
    assert occupancy(Resources(64, 0, 32_768), schedule, NAMED["gfx942"]) == 0.25
    assert occupancy(Resources(), schedule, NAMED["gfx942"]) is None


def test_the_command_prints_a_row_for_each_kernel_and_fails_with_its_defaults(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    spec = next(each.spec for each in specs() if each.name == "decode")
    job = Job("decode", spec, default("triton", spec, HOPPER), HOPPER, DEFAULT)
    monkeypatch.setattr("tuner.commands.gpu.check", lambda todo, processes: chain.from_iterable(map(check_one, todo)))
    monkeypatch.setattr("tuner.commands.gpu.jobs", lambda archs, sample, store: [job])
    assert main(["gpu-check", "--arch", "sm_90", "--processes", "1"]) == 0
    said = capsys.readouterr().out
    assert "memory_step" in said
    assert "1 of 1 kernels passed" in said
    large = next(each.spec for each in specs() if each.name == "prefill-f32")
    schedule = replace(default("triton", large, HOPPER), tile_rows=64)
    monkeypatch.setattr("tuner.commands.gpu.jobs", lambda *given: [Job("large", large, schedule, HOPPER, DEFAULT)])
    assert main(["gpu-check", "--arch", "sm_90", "--processes", "1"]) == 1
    assert "large on sm_90, trellis_update: the default schedule trellis_update spills" in capsys.readouterr().out
