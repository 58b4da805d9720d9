"""Candidates prepared for a GPU that is not here, and the order they are put in."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codegen.backends import Resources
from codegen.device import NAMED
from codegen.rule import Rule
from codegen.schedules.registry import default
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Problem, Spec
from trellis_ops.specs.workload import load_workload
from tuner.errors import CandidateFileError
from tuner.offline import candidates
from tuner.offline.cost_model import Walk, predicted_seconds, promising_first, walk_of
from tuner.space.legal import changes
from tuner.workload import DEFAULT_FILE

pytest.importorskip("triton")

HOPPER = NAMED["sm_90"]
SPEC = Spec(Rule(), Problem(batch=8, heads=16, dtype="bfloat16"))
FUSED = TritonSchedule("fused", 16, 8, 1, "bf16")
NEEDS = Resources(128, 0, 16_384, 64_000)


def guess(needs: Resources = NEEDS, schedule: TritonSchedule = FUSED, spec: Spec = SPEC, arch: str = "sm_90"):
    return predicted_seconds(spec, schedule, NAMED[arch], [("trellis_fused", needs)])


def changed(**sizes) -> Spec:
    return dataclasses.replace(SPEC, problem=dataclasses.replace(SPEC.problem, **sizes))


def test_what_costs_more_is_guessed_to_take_longer():
    usual = guess()
    assert guess(dataclasses.replace(NEEDS, spill_bytes=400)) > usual
    assert guess(dataclasses.replace(NEEDS, code_bytes=2 * NEEDS.code_bytes)) > usual
    described = dataclasses.replace(FUSED, loads="descriptors")
    one_by_one = guess(dataclasses.replace(NEEDS, code_bytes=NEEDS.code_bytes + 8192), described)
    assert one_by_one > usual, "copies outside of a pipeline are waited for one by one"
    pipelined, described = (dataclasses.replace(each, num_stages=2) for each in (FUSED, described))
    made_once = guess(dataclasses.replace(NEEDS, code_bytes=NEEDS.code_bytes + 8192), described)
    assert made_once == pytest.approx(guess(schedule=pipelined), rel=1e-2), "descriptors are made before the first tile"
    assert guess(spec=changed(tokens=8192)) == pytest.approx(2 * usual)
    assert guess(spec=changed(batch=80)) > 1.5 * usual
    assert guess(spec=changed(batch=4)) == pytest.approx(usual), "fewer heads than multiprocessors run side by side"
    assert guess(dataclasses.replace(NEEDS, code_bytes=None)) is None
    assert predicted_seconds(SPEC, FUSED, NAMED["aarch64"], [("trellis_fused", NEEDS)]) is None


def test_how_kernels_are_launched():
    assert walk_of("trellis_fused", SPEC, FUSED.tile_loop()) == Walk(128, 64 * 4)
    assert walk_of("trellis_update", SPEC, FUSED.tile_loop()) == Walk(256, 64 * 4)
    assert walk_of("exact_update", SPEC, FUSED.tile_loop()) == Walk(256, 64 * 4)
    assert walk_of("memory_readout", SPEC, FUSED.tile_loop()) == Walk(128 * 64, 4)
    assert walk_of("memory_step", changed(tokens=1, chunk=1), FUSED.tile_loop()) == Walk(128, 1)
    assert walk_of("keys_backward", SPEC, FUSED.tile_loop()) == Walk(128, 2 * 64 * 4)
    assert walk_of("recurrence", SPEC, FUSED.tile_loop()) == Walk(128, 4096)
    assert walk_of("recurrence_backward", SPEC, FUSED.tile_loop()) == Walk(128, 2 * 4096)


def test_the_promising_come_first_and_those_without_a_guess_last():
    slow, fast, unknown = (dataclasses.replace(FUSED, num_warps=warps) for warps in (1, 2, 4))
    assert promising_first([(unknown, None), (slow, 2.0), (fast, 1.0)]) == [fast, slow, unknown]


def test_every_variant_has_its_share_and_the_default_is_first():
    chosen = candidates.choose(SPEC, HOPPER, 9)
    assert chosen[0] == default("triton", SPEC, HOPPER)
    assert len(set(chosen)) == 9
    assert {each.variant for each in chosen} == {"fused", "split"}


def test_a_list_is_compiled_pruned_ordered_written_and_read(tmp_path):
    step = next(each for each in load_workload(DEFAULT_FILE, "cuda") if each.name == "decode")
    ranked = candidates.rank(step, HOPPER, most=3, seconds=60.0, processes=1)
    assert ranked.tried == 3
    assert ranked.pruned + len(ranked.guesses) == 3
    path = candidates.path_for(HOPPER, tmp_path / "made")
    candidates.write([ranked], path)
    assert candidates.read(path) == (ranked,)
    schedules = candidates.schedules_of(ranked, "triton", HOPPER)
    assert schedules[0][0] == default("triton", step.spec, HOPPER)
    assert all(seconds > 0 for _, seconds in schedules)
    older = candidates.Ranked(
        **{name: getattr(ranked, name) for name in ranked.__struct_fields__} | {"template_digest": "0"}
    )
    assert candidates.schedules_of(older, "triton", HOPPER) == []
    other = candidates.Ranked(**{name: getattr(older, name) for name in older.__struct_fields__} | {"spec": "another"})
    candidates.write([other, older], path)
    candidates.write([ranked], path)
    assert candidates.read(path) == (ranked, other)


def test_what_differs_least_from_the_default_comes_first():
    first, *chosen = candidates.choose(SPEC, HOPPER, 12)
    assert {each.dot_precision for each in chosen} == {first.dot_precision}
    for variant in {each.variant for each in chosen}:
        apart = [changes(each, first) for each in chosen if each.variant == variant]
        assert apart == sorted(apart)


def test_a_file_that_is_no_list_says_what_to_do(tmp_path):
    path = tmp_path / "broken.jsonl"
    path.write_text('{"name": 3}\n')
    with pytest.raises(CandidateFileError, match="--offline"):
        candidates.read(path)
    candidates.write([], path)
    assert candidates.read(path) == ()
    assert (tmp_path / "broken.jsonl.unreadable-1").read_text() == '{"name": 3}\n'


@pytest.mark.parametrize("content", [b"\xff\n", b"[" * 100_000, b'{"name": "' + b"9" * 5_001, b"7\n"])
def test_a_hostile_list_is_refused(tmp_path, content):
    path = tmp_path / "list.jsonl"
    path.write_bytes(content)
    with pytest.raises(CandidateFileError, match="--offline"):
        candidates.read(path)


def test_a_pipe_in_place_of_a_list_hangs_nobody(tmp_path):
    os.mkfifo(tmp_path / "list.jsonl")
    with pytest.raises(CandidateFileError, match="not a regular file"):
        candidates.read(tmp_path / "list.jsonl")


@pytest.mark.skipif(not candidates.path_for(HOPPER).exists(), reason="none is shipped: make gpu-prepare writes one")
def test_the_list_that_is_shipped_is_of_these_templates():
    listed = candidates.read(candidates.path_for(HOPPER))
    workload = {each.name: each.spec.key() for each in load_workload(DEFAULT_FILE, "cuda")}
    assert {each.name: each.spec for each in listed} == workload
    assert all(candidates.schedules_of(each, "triton", HOPPER) for each in listed), (
        "run make gpu-prepare, and commit the list"
    )


WARM = """
import sys, torch, triton
from triton.backends.compiler import GPUTarget
from codegen.backends.triton import compile as backend
from codegen.backends.source_module import module_of
from codegen.device import NAMED
from codegen.kernels.signatures import dtype_of, kernel_arguments
from codegen.render import render
from tests.tuner.offline.test_candidates import CACHED_SPEC as spec, CACHED as schedule

class FakeGpu:
    def get_current_device(self): return 0
    def get_current_stream(self, device=None): return 0
    def get_current_target(self): return GPUTarget("cuda", 90, 32)

source = render("memory_step", spec, schedule, NAMED["sm_90"])
if sys.argv[1] == "offline":
    backend.resources(source, spec, schedule, NAMED["sm_90"])
else:
    triton.runtime.driver.set_active(FakeGpu())
    function = getattr(module_of(source, "triton"), source.kernel)
    arguments = kernel_arguments(source.kernel, spec, schedule)
    kinds = [getattr(torch, dtype_of(each, spec, schedule)) if each.is_tensor else 1 for each in arguments]
    function.warmup(*kinds, 1, grid=(1,), num_warps=schedule.num_warps)
"""
CACHED_SPEC = Spec(
    Rule(), Problem("trellis_step", tokens=1, heads=1, dim_k=16, dim_v=16, slots=16, chunk=1, dtype="bfloat16")
)
CACHED = TritonSchedule("recurrent", 16, 4, 1, "ieee")


def test_what_is_compiled_offline_is_found_by_a_launch_on_a_gpu_that_is_faked_here(tmp_path: Path):
    cache = tmp_path / "triton"
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}

    def compiled(how: str) -> set[str]:
        subprocess.run([sys.executable, "-c", WARM, how], check=True, env=environment, cwd=Path(__file__).parents[3])
        return {path.name for path in cache.rglob("*.cubin")} | {path.parent.name for path in cache.rglob("*.cubin")}

    offline = compiled("offline")
    assert len(offline) == 2
    assert compiled("launch") == offline
