"""What must not cost much more than something else: the exact recurrence, half precision; and what must cost less."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codegen.device import Device
from codegen.spec import Problem
from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Results
from tests.benchmarks.subjects.relations import Relation, time_operators, time_threads, why_no_kernel

PREFILL = Problem(batch=1, heads=8, tokens=4096, chunk=64)
FEW_HEADS = Problem(batch=1, heads=1, tokens=8192, chunk=64)
HALF_PRECISION = {
    "prefill": PREFILL,
    "prefill-c16": replace(PREFILL, chunk=16),
    "exact": replace(PREFILL, tokens=512, chunk=1),
    "decode": replace(PREFILL, operator="trellis_step", tokens=1, chunk=1),
}
THREADS = 2


@pytest.fixture(autouse=True)
def _only_kernels(device: Device, replay: Replay) -> None:
    reason = why_no_kernel(PREFILL, device)
    if reason is not None or device.kind != "cpu":
        replay.skip(reason or "these targets are for CPUs")


def test_exact_recurrence(device: Device, results: Results, replay: Replay) -> None:
    timings = time_operators({"C = 1": replace(PREFILL, chunk=1), "C = 64": PREFILL}, device)
    _report(Relation("exact recurrence at T 4096 to C = 64", "C = 1", "C = 64", 1.3, False, timings), results, replay)


@pytest.mark.parametrize("name", HALF_PRECISION)
def test_half_precision(name: str, device: Device, results: Results, replay: Replay) -> None:
    problem = HALF_PRECISION[name]
    types = ("float32", "bfloat16", "float16")
    timings = time_operators({dtype: replace(problem, dtype=dtype) for dtype in types}, device)
    for dtype in types[1:]:
        relation = Relation(f"{name} in {dtype} to float32", dtype, "float32", 1.15, False, timings)
        results.targets.append(relation.target())
    replay(f"{name} by type", timings["bfloat16"].samples, float32_seconds=timings["float32"].seconds)


def test_few_heads(device: Device, results: Results, replay: Replay) -> None:
    if device.cores < THREADS:
        replay.skip(f"{THREADS} threads need {THREADS} cores, this process may use {device.cores}")
    timings = time_threads(FEW_HEADS, (1, THREADS), device)
    relation = Relation("B1 H1 T8192 on 2 threads", "1 thread", "2 threads", 1.5, True, timings)
    _report(relation, results, replay)


def _report(relation: Relation, results: Results, replay: Replay) -> None:
    results.targets.append(relation.target())
    over, under = relation.timings[relation.over], relation.timings[relation.under]
    replay(relation.name, over.samples, **{f"{relation.under} seconds": under.seconds})
