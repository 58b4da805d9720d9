"""Training runs small enough for a test, as commands in processes of their own or in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[4]
TEXT = b"".join(b"slot %d holds what chunk %d wrote; " % (i % 7, i % 5) for i in range(150))
SIZES = {"layers": 2, "width": 32, "heads": 2, "slots": 8, "chunk-size": 8, "batch": 4, "length": 16, "threads": 1}
STEPS = {"warmup": 2, "eval-tokens": 128, "eval-every": 5, "learning-rate": 0.01, "device": "cpu"}
SMALL = [text for name, value in {**SIZES, **STEPS}.items() for text in (f"--{name}", str(value))]


def environment() -> dict[str, str]:
    """Nothing is compiled, nothing tuned is used."""
    return {
        **os.environ,
        "TRELLIS_OPS_IMPLEMENTATION": "eager",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }


def start(arguments: list[str], processes: int = 1) -> subprocess.Popen[str]:
    """`python -m trellis_ops.lm.train`, under torchrun if `processes` is more than 1."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "trellis_ops.lm.train", *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a success; what was printed."""
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 0, printed
    return printed
