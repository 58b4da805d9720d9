"""What programs with tensor descriptors need at launch: memory for the descriptors, tensors that they can describe."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from codegen.kernels.arguments import READ, Argument
from codegen.render import Source

ALIGNMENT = 16
"""Bytes that the address of a described tensor is a multiple of."""

_MAKES_DESCRIPTORS = "tl.make_tensor_descriptor"
_BY_POINTERS = ("log_decay", "step_size", "cu_seqlens", "chunk_offsets")


def described(source: Source, arguments: Sequence[Argument]) -> tuple[int, ...]:
    """Places of the arguments of a kernel that it reads through descriptors; none where it reads through pointers."""
    if _MAKES_DESCRIPTORS not in source.text:
        return ()
    return tuple(
        place
        for place, argument in enumerate(arguments)
        if argument.access == READ and argument.axes[:1] == ("tokens",) and argument.name not in _BY_POINTERS
    )


def aligned(arguments: Sequence[torch.Tensor | int], places: Sequence[int]) -> tuple[torch.Tensor | int, ...]:
    """The arguments, those at `places` copied where a descriptor could not describe them."""
    ready = list(arguments)
    for place in places:
        argument = ready[place]
        if isinstance(argument, torch.Tensor) and argument.data_ptr() % ALIGNMENT:
            ready[place] = argument.clone()
    return tuple(ready)


def provide_memory() -> None:
    """Let Triton take memory for descriptors from torch, unless an allocator is set.

    It has to be asked before every launch: Triton keeps the allocator of each thread, or other context, apart.
    """
    import triton
    from triton.runtime import _allocation

    if isinstance(_allocation._allocator.get(), _allocation.NullAllocator):
        triton.set_allocator(_from_torch)


def _from_torch(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    # Triton launches on torch's current stream, so torch gives this memory away again only behind the kernel, and
    # inside a CUDA graph keeps it for the graph. Its blocks begin at multiples of 512 bytes.
    return torch.empty(size, dtype=torch.int8, device="cuda")
