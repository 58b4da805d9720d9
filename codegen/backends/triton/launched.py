"""Kernels of Triton that are called: on a GPU, or by its interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from codegen.backends.triton import descriptors as triton_descriptors
from codegen.render import Source

ALIGNMENT = 16
"""Bytes that the address of a tensor is a multiple of, where a kernel was compiled for it."""

# For AMD what is compiled without tensors takes each of them for one of at most so many bytes, and offsets for 32 bits.
_SHORT_BYTES = 2**31 - 1 if torch.version.hip else None


@dataclass(frozen=True)
class InterpretedKernel:
    """A kernel that Triton's interpreter runs, one program after the other; see `CompiledKernel`."""

    source: Source
    function: Any
    described: tuple[int, ...]
    told_heads: bool

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Run `programs` programs."""
        if self.described:
            arguments = triton_descriptors.aligned(arguments, self.described)
        self.function[(programs,)](*arguments, *_heads(arguments, self.told_heads))


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel on a GPU.

    Attributes:
        source: what it was compiled from.
        function: what recompiles for another GPU, another type or another alignment, at some 30 us a call more.
        compiled: `function` for the tensor types `types`, aligned to 16 bytes, on GPU number `gpu`.
        num_warps: warps per program.
        described: places of the arguments that it reads through tensor descriptors.
        told_heads: whether the number of heads is its last argument; it is a constant of the kernels of layers.
    """

    source: Source
    function: Any
    compiled: Any
    types: tuple[torch.dtype | None, ...]
    gpu: int
    num_warps: int
    described: tuple[int, ...]
    told_heads: bool

    def __call__(self, programs: int, *arguments: torch.Tensor | int) -> None:
        """Launch `programs` programs on the current stream of the tensors' GPU."""
        if self.described:
            triton_descriptors.provide_memory()
            arguments = triton_descriptors.aligned(arguments, self.described)
        if self._fits(arguments):
            self.compiled[(programs, 1, 1)](*arguments, *_heads(arguments, self.told_heads))
            return
        first = arguments[0]
        assert isinstance(first, torch.Tensor)
        with torch.cuda.device(first.device):
            heads = _heads(arguments, self.told_heads)
            self.function[(programs,)](*arguments, *heads, num_warps=self.num_warps)

    def _fits(self, arguments: tuple[torch.Tensor | int, ...]) -> bool:
        if torch.cuda.current_device() != self.gpu:
            return False
        for argument, dtype in zip(arguments, self.types, strict=True):
            if isinstance(argument, torch.Tensor) and (
                argument.dtype is not dtype or argument.get_device() != self.gpu or argument.data_ptr() % ALIGNMENT
            ):
                return False
        return _SHORT_BYTES is None or are_short(arguments, _SHORT_BYTES)


def are_short(arguments: tuple[torch.Tensor | int, ...], most: int) -> bool:
    """Whether no tensor lies in more than `most` bytes."""
    return all(not isinstance(x, torch.Tensor) or x.untyped_storage().nbytes() <= most for x in arguments)


def _heads(arguments: tuple[torch.Tensor | int, ...], told: bool) -> tuple[int, ...]:
    """The number of heads, for a kernel that is told it."""
    # The first argument of such a kernel is a tensor [B*T, H, .].
    first = arguments[0]
    assert isinstance(first, torch.Tensor)
    return (first.shape[1],) if told else ()
