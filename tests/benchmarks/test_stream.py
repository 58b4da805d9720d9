"""The reference model, one token at a time: tokens per second, and whether token 100,000 costs what the first did."""

from __future__ import annotations

import pytest

from codegen.device import Device
from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Results
from tests.benchmarks.results.targets import Target
from tests.benchmarks.studies.growth.stream import run_stream, stream_model
from tests.benchmarks.turns import ratio
from tuner.duration import duration

WINDOW, ROUNDS = 250, 16
MOST_GROWTH, MOST_LATE = 1.05, 1.1


def test_stream(device: Device, results: Results, replay: Replay, pytestconfig: pytest.Config) -> None:
    if device.kind != "cpu":
        replay.skip("these targets are for CPUs")
    tokens = pytestconfig.getoption("--stream-tokens")
    if tokens == 0:
        replay.skip("not run: --stream-tokens is 0")
    stream = run_stream(stream_model(), tokens, WINDOW, ROUNDS)
    seconds = sum(stream.windows) / len(stream.windows)
    before, after = stream.state_bytes
    results.remarks.append(
        f"{1 / seconds:,.0f} tokens per second, {duration(seconds)} a token, in a stream of {stream.tokens:,} steps"
        f" through one layer of the model `tiny` on one thread;"
        f" its state has {before:,} bytes before the first token, {after:,} at the end"
    )
    remark = f"windows of {WINDOW} steps from both states in turn; {duration(stream.old.seconds)} a token"
    grown = ratio(stream.old, stream.young)
    name = f"a token after {stream.tokens:,} to one of the first {WINDOW:,}"
    results.targets.append(Target(name, grown, MOST_GROWTH, False, remark=remark))
    name = f"a token of the last tenth of {stream.tokens:,} to one of the first tenth"
    results.targets.append(Target(name, stream.late_to_early, MOST_LATE, False, remark="the fastest windows"))
    results.targets.append(Target("bytes of the state, at the end to the beginning", after / before, 1.0, False))
    replay("a stream of steps through the model", stream.windows, late_to_early=stream.late_to_early)
