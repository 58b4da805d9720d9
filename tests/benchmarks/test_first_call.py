"""What a kernel costs once per machine, compiled and loaded, and what the first call costs in every process after."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from codegen.device import Device
from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Overhead, Results
from tests.benchmarks.studies.kernels.first_call import CALL, CHUNKS, IMPORT, Spent, in_a_process, kernel
from tuner.duration import duration

KERNEL_LIMIT = 1.0
CALL_LIMIT = 0.050
_COLD_PROCESSES, _WARM_PROCESSES = 2, 7


def test_first_call(device: Device, results: Results, replay: Replay, tmp_path: Path) -> None:
    if device.kind != "cpu":
        replay.skip("these targets are for CPUs")
    cold = [in_a_process("forward", _fresh(tmp_path, number)) for number in range(_COLD_PROCESSES)]
    backward = in_a_process("backward", _fresh(tmp_path, _COLD_PROCESSES))
    warm = [in_a_process("call", _fresh(tmp_path, 0))[CALL] for _ in range(_WARM_PROCESSES)]
    for name in (kernel("forward", chunk) for chunk in CHUNKS):
        results.overheads.append(_overhead(f"compile and load, {name}", [each[name] for each in cold], KERNEL_LIMIT))
    results.overheads.append(_overhead("first call of a process, its kernel on the disk", warm, CALL_LIMIT))
    of_backward, compiler = backward[kernel("backward", CHUNKS[0])], [each[IMPORT] for each in (*cold, backward)]
    results.remarks.append(
        f"importing TVM's compiler took {duration(statistics.median(each.wall for each in compiler))} before the first"
        f" of these kernels; the two of a backward, C = {CHUNKS[0]}, {duration(of_backward.wall)} together,"
        f" processor time {duration(of_backward.processor)}"
    )
    replay("first call", [each.wall for each in warm], kernels={name: spent.wall for name, spent in cold[0].items()})


def _fresh(folder: Path, number: int) -> dict[str, str]:
    # Nor the user's own winners, which would be other kernels than those of a fresh clone.
    return {"TRELLIS_OPS_CACHE": str(folder / f"cache-{number}"), "TRELLIS_OPS_TUNING_DB": str(folder / "database")}


def _overhead(name: str, spent: Sequence[Spent], limit: float) -> Overhead:
    remark = f"processor time {duration(statistics.median(each.processor for each in spent))}"
    return Overhead(name, tuple(each.wall for each in spent), limit, remark)
