"""Tensors of more elements than 32 bits count, which take next to no memory."""

from __future__ import annotations

import ctypes
import math
import mmap
import os

import pytest
import torch
from torch import Tensor

_NO_RESERVE = 0x4000  # Linux's MAP_NORESERVE, which mmap names from Python 3.12 on.
_WINDOW_BYTES = 2**21


def untouched(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros, which take memory only where they are written; the test is skipped where there is no address space."""
    return torch.frombuffer(_region(math.prod(shape) * dtype.itemsize), dtype=dtype).view(shape)


def far(x: Tensor, rows: int) -> Tensor:
    """A tensor whose last rows are x, behind `rows` others that nobody has touched."""
    whole = untouched(rows + x.shape[0], *x.shape[1:], dtype=x.dtype)
    whole[rows:] = x
    return whole


def far_in_place(x: Tensor, rows: int) -> Tensor:
    """As `far`, but the others may be written too: they are views of the same two megabytes."""
    whole = untouched(rows + x.shape[0], *x.shape[1:], dtype=x.dtype)
    windows = rows * x[0].nbytes // _WINDOW_BYTES
    _repeat(whole.data_ptr(), windows)
    whole[rows:] = x
    return whole


def _region(size: int) -> mmap.mmap:
    try:
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    except OSError as error:
        pytest.skip(f"this machine has no address space for {size} bytes: {error}")


def _repeat(address: int, windows: int) -> None:
    """Map the same memory `windows` times from `address` on, in place of what was mapped there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    file = os.memfd_create("window")
    try:
        os.ftruncate(file, _WINDOW_BYTES)
        for window in range(windows):
            place, fixed = address + window * _WINDOW_BYTES, 0x10  # MAP_FIXED, which mmap does not name.
            mapped = libc.mmap(place, _WINDOW_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | fixed, file, 0)
            assert mapped == place, os.strerror(ctypes.get_errno())
    finally:
        os.close(file)
