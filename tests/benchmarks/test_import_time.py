"""What `import trellis_ops` adds to `import torch`."""

from __future__ import annotations

import statistics
import subprocess
import sys

from tests.benchmarks.results.replay import Replay
from tests.benchmarks.results.summary import Overhead, Results
from tuner.duration import duration

LIMIT = 0.150
_PROCESSES = 7
_CODE = """
import time
import torch
wall, processor = time.perf_counter(), time.process_time()
import trellis_ops
print(time.perf_counter() - wall, time.process_time() - processor)
"""


def test_import_time(results: Results, replay: Replay) -> None:
    samples, processor = zip(*(_seconds() for _ in range(_PROCESSES)), strict=True)
    remark = f"processor time {duration(statistics.median(processor))}"
    results.overheads.append(Overhead("import trellis_ops after torch", samples, LIMIT, remark))
    replay("import", samples, processor_seconds=statistics.median(processor))


def _seconds() -> tuple[float, float]:
    """What a clock on the wall and what the processor says that it took, in a process of its own."""
    finished = subprocess.run([sys.executable, "-c", _CODE], capture_output=True, text=True, check=True)
    wall, processor = map(float, finished.stdout.split())
    return wall, processor
