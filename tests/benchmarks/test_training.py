"""A training step of the operator against autograd of eager code and `torch.compile` of it."""

from __future__ import annotations

import pytest

from codegen.device import Device
from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Results
from tests.benchmarks.subjects.relations import why_no_kernel
from tests.benchmarks.subjects.rivals import EAGER, Rivals
from tests.benchmarks.subjects.training import BILEVEL, PROBLEM, train


def test_training(
    device: Device, rivals: Rivals, results: Results, replay: Replay, pytestconfig: pytest.Config
) -> None:
    reason = why_no_kernel(PROBLEM, device)
    if reason is not None or device.kind != "cpu":
        replay.skip(reason or "these targets are for CPUs")
    found = train(device, rivals, pytestconfig.getoption("--compile-limit"))
    results.targets += found.targets()
    results.remarks += found.remarks()
    replay("a training step", found.timings[BILEVEL].samples, eager_seconds=found.timings[EAGER].seconds)
