from __future__ import annotations

import platform
import subprocess
import sys

import pytest

TENSORS = 4
KEPT, MAPPED = 30_000_000, 40_000_000
"""Bytes of a tensor that every glibc can be told to keep, and of one that it maps anew unless it is told to."""

SCRIPT = f"""
import resource
import torch
from trellis_ops.lm.train.processes.allocator import keep_freed_memory

if KEEP:
    assert keep_freed_memory()

def step():
    return [torch.ones(BYTES // 4) for _ in range({TENSORS})]

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(3):
    step()
before = faults()
for _ in range(5):
    step()
print((faults() - before) // 5 * resource.getpagesize())
"""


def mapped_again(keep: bool, size: int) -> int:
    """Bytes that the system has to map in every step, whose tensors have `size` bytes each."""
    script = SCRIPT.replace("KEEP", str(keep)).replace("BYTES", str(size))
    return int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this C library has no mallopt")
def test_what_a_step_frees_is_there_for_the_next():
    assert mapped_again(keep=True, size=KEPT) < TENSORS * KEPT // 10
    assert mapped_again(keep=False, size=MAPPED) > TENSORS * MAPPED // 2
