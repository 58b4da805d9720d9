"""Tensors that did not fit into memory, told from other errors, which torch raises as RuntimeErrors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from trellis_ops.lm.train.errors import OutOfMemoryError

_SAID = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed", "too many bytes")
"""What torch says on a CPU."""


@contextlib.contextmanager
def memory_limits() -> Iterator[None]:
    """Within it, what did not fit into memory is an OutOfMemoryError that says what to make smaller."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise OutOfMemoryError(reason=_first_line(error)) from error
    except RuntimeError as error:
        if not any(said in str(error) for said in _SAID):
            raise
        raise OutOfMemoryError(reason=_first_line(error)) from error


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
