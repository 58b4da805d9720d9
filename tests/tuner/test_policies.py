"""How times are taken. No GPU was at hand: those of GPUs are tested on a fake one, with a fake NVML."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from codegen.device import NAMED, cpu
from codegen.errors import SizeError
from tuner.errors import PolicyError, ThrottledError
from tuner.measure.clocks import NvmlClocks, Reading
from tuner.measure.cpu_timing import CpuSampler, flushed_bytes
from tuner.measure.gpu_timing import GpuSampler, copies_past_cache
from tuner.measure.measure import SETTLED, measure
from tuner.measure.timed import Timed
from tuner.policy import POLICIES, policy_for, stated
from tuner.workers.pinning import Pinning, keep_to, ordered_cores

SM_90 = NAMED["sm_90"]
ROOT = Path(__file__).resolve().parents[2]


def test_every_device_has_its_policies_and_a_default():
    assert policy_for(cpu()).name == "cpu-warm"
    assert policy_for(SM_90).name == "gpu-graph"
    assert not policy_for(SM_90, "gpu-events").graph
    assert policy_for(cpu(), "cpu-cold").cold
    assert len({policy.name for policy in POLICIES}) == len(POLICIES)
    with pytest.raises(PolicyError, match="choose one of: cpu-warm, cpu-cold"):
        policy_for(cpu(), "gpu-graph")


def test_a_record_states_its_policy_by_name_first():
    text = stated(policy_for(cpu(), "cpu-cold"), cpu(), 60)
    assert text.startswith("cpu-cold: pinned threads")
    assert f"{cpu().cores} cores" in text
    assert "up to 60 interleaved rounds" in text


class Once:
    """Samples from a list, the same for every call."""

    def __init__(self, values):
        self.values = list(values)

    def warm(self, name, call):
        pass

    def sample(self, name, call):
        return self.values.pop(0)


NOTHING = Timed(lambda: None, lambda: None)


def test_the_number_of_rounds_follows_from_the_spread():
    steady = measure({"it": NOTHING}, cpu(), seconds=60, rounds=500, settle=True, sampler=Once([1.0] * 500))
    noisy = [1.0 + 0.1 * (-1) ** place for place in range(2000)]
    unsettled = measure({"it": NOTHING}, cpu(), seconds=60, rounds=2000, settle=True, sampler=Once(noisy))
    assert len(steady["it"].samples) == 12
    count = len(unsettled["it"].samples)
    assert count == pytest.approx((0.1 / SETTLED) ** 2, rel=0.2)
    every = measure({"it": NOTHING}, cpu(), seconds=60, rounds=50, sampler=Once([1.0] * 50))
    assert len(every["it"].samples) == 50


def test_a_round_in_which_the_device_was_held_back_does_not_count_for_any():
    values = [1.0, 2.0, None, 9.0, 1.5, 2.5]
    found = measure({"a": NOTHING, "b": NOTHING}, cpu(), seconds=60, rounds=2, sampler=Once(values))
    assert (found["a"].samples, found["b"].samples) == ((1.0, 1.5), (2.0, 2.5))
    with pytest.raises(ThrottledError, match="throttled by heat or power"):
        measure({"a": NOTHING}, cpu(), seconds=60, rounds=2, sampler=Once([None] * 50))


def test_cold_caches_are_filled_before_each_single_call():
    events: list[str] = []
    sampler = CpuSampler(cold=True)
    call = Timed(lambda: events.append("run"), lambda: events.append("reset"))
    sampler.warm("it", call)
    events.clear()
    sampler.sample("it", call)
    first = float(sampler._other[0])
    sampler.sample("it", call)
    assert float(sampler._other[-1]) == first + 1.0
    assert events == ["reset", "run"] * 2
    assert 4 * sampler._other.numel() == flushed_bytes() >= 32 * 2**20


def test_warm_samples_are_of_many_short_calls():
    runs = []
    sampler = CpuSampler(cold=False)
    call = Timed(lambda: runs.append(None), lambda: None)
    sampler.warm("it", call)
    runs.clear()
    sampler.sample("it", call)
    assert len(runs) > 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads are pinned on Linux")
def test_threads_of_kernels_are_pinned_for_as_long_as_times_are_taken():
    pinning, stop, threads = Pinning(), threading.Event(), []
    usable = os.sched_getaffinity(0)

    def start() -> None:
        threads.append(threading.Thread(target=stop.wait))
        threads[0].start()

    pinning.started_by(start)
    try:
        with pinning.in_place():
            cores = ordered_cores(usable)
            assert os.sched_getaffinity(0) == {cores[0]}
            assert os.sched_getaffinity(threads[0].native_id) == {cores[1 % len(cores)]}
        assert os.sched_getaffinity(0) == usable
    finally:
        stop.set()
        threads[0].join()
    with pinning.in_place():
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="processes are kept to cores on Linux")
def test_a_search_for_one_core_is_of_a_device_of_one_core():
    imports = "from codegen.device import cpu; from tuner.workers.pinning import keep_to"
    script = f"{imports}; cpu(); keep_to(1); print(cpu().key())"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("-1-cores")


@pytest.mark.parametrize("cores", [0, 2**20])
def test_cores_that_there_are_not_are_refused(cores: int):
    with pytest.raises(SizeError, match=f"cores={cores}"):
        keep_to(cores)


def test_second_threads_of_a_core_come_last(monkeypatch):
    monkeypatch.setattr("tuner.workers.pinning._siblings", lambda core: str(core % 2))
    assert ordered_cores({0, 1, 2, 3}) == (0, 1, 2, 3)
    monkeypatch.setattr("tuner.workers.pinning._siblings", lambda core: str(core // 2))
    assert ordered_cores({0, 1, 2, 3}) == (0, 2, 1, 3)
    assert sorted(ordered_cores({5, 7})) == [5, 7]


@dataclass
class FakeGpu:
    """Takes a tenth of a millisecond for each launch and half of that for each in a graph."""

    events: list[str] = field(default_factory=list)
    elapsed: float = 0.0

    def launch(self, name: str) -> None:
        self.events.append(name)
        self.elapsed += 1e-4

    def seconds(self, work):
        before = self.elapsed
        work()
        return self.elapsed - before

    def captured(self, runs):
        def replay() -> None:
            self.events.append("replay")
            self.elapsed += 5e-5 * len(runs)

        return replay


@dataclass
class FakeClocks:
    readings: list[Reading]

    def read(self) -> Reading:
        return self.readings.pop(0) if self.readings else Reading(1980, 0)


def rotating(gpu: FakeGpu) -> Timed:
    one, two, three = (lambda name=name: gpu.launch(name) for name in "abc")
    return Timed(one, lambda: gpu.events.append("reset"), (two, three))


def test_on_a_fake_gpu_inputs_take_turns_so_that_the_cache_is_cold():
    gpu = FakeGpu()
    sampler = GpuSampler(gpu, graph=False, clocks=None)
    sampler.warm("it", rotating(gpu))
    gpu.events.clear()
    assert sampler.sample("it", rotating(gpu)) == pytest.approx(1e-4)
    assert gpu.events[0] == "reset"
    assert "".join(gpu.events[1:]) == "abc" * (len(gpu.events) // 3)
    assert copies_past_cache(60, 100) == 1 + 4
    assert copies_past_cache(10**9, 100) == 2


def test_on_a_fake_gpu_a_graph_is_replayed_without_the_launches():
    gpu = FakeGpu()
    sampler = GpuSampler(gpu, graph=True, clocks=None)
    sampler.warm("it", rotating(gpu))
    gpu.events.clear()
    assert sampler.sample("it", rotating(gpu)) == pytest.approx(5e-5)
    assert set(gpu.events) == {"reset", "replay"}


@pytest.mark.parametrize("reason", [0x8, 0x20, 0x40, 0x80])
@pytest.mark.parametrize("when", [0, 1])
def test_on_a_fake_gpu_samples_of_a_throttled_clock_are_discarded(reason, when):
    gpu = FakeGpu()
    readings = [Reading(1980, 0), Reading(1980, 0)]
    readings[when] = Reading(1200, reason)
    sampler = GpuSampler(gpu, graph=False, clocks=FakeClocks(readings))
    sampler.warm("it", rotating(gpu))
    assert sampler.sample("it", rotating(gpu)) is None
    assert sampler.sample("it", rotating(gpu)) == pytest.approx(1e-4)


def test_a_power_cap_and_an_idle_clock_are_no_throttling():
    assert Reading(1980, 0x1 | 0x4).held_back() == []
    assert Reading(900, 0x40).held_back() == ["hardware thermal slowdown"]


def test_clocks_are_read_through_nvml_here_a_fake_one():
    class FakeNvml:
        NVML_CLOCK_SM = 1
        started = False

        def nvmlInit(self):
            self.started = True

        def nvmlDeviceGetHandleByIndex(self, index):
            return f"gpu {index}"

        def nvmlDeviceGetClockInfo(self, handle, kind):
            assert (handle, kind) == ("gpu 3", self.NVML_CLOCK_SM)
            return 1755

        def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
            return 0x20

    nvml = FakeNvml()
    reading = NvmlClocks(nvml, 3).read()
    assert nvml.started
    assert reading == Reading(1755, 0x20)
    assert reading.held_back() == ["software thermal slowdown"]


def test_no_gpu_is_started_to_choose_a_policy():
    assert policy_for(SM_90) in POLICIES
    assert not torch.cuda.is_initialized()
