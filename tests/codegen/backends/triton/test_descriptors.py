"""Schedules that load tiles by tensor descriptors: which are legal, and what Triton makes of them for sm_90."""

from __future__ import annotations

import contextvars
import dataclasses
from pathlib import Path

import pytest
import torch

from codegen.backends import backend
from codegen.backends.triton import descriptors as triton_descriptors
from codegen.device import NAMED, cpu
from codegen.kernels.build import parts
from codegen.kernels.signatures import kernel_arguments
from codegen.render import Source, render
from codegen.rule import Rule
from codegen.schedules.legality import why_illegal
from codegen.schedules.registry import default
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Problem, Spec

triton = pytest.importorskip("triton")

HOPPER = NAMED["sm_90"]
COPY = "cp.async.bulk.tensor.2d"
FUSED = TritonSchedule("fused", 16, num_warps=8, num_stages=1, dot_precision="bf16", loads="descriptors")
SIZES = {"batch": 1, "tokens": 1, "heads": 1, "dim_k": 16, "dim_v": 24, "slots": 16, "chunk": 32, "dtype": "bfloat16"}


def spec_of(**changes: object) -> Spec:
    return Spec(Rule(), Problem(**{**SIZES, **changes}))


# How many tensors each kernel copies tiles of.
KERNELS = [
    ("trellis_attention", "fused", {"trellis_fused": 4}),
    ("trellis_attention", "split", {"trellis_update": 4, "memory_readout": 5}),
    ("memory_update", "update", {"memory_update": 2}),
    ("memory_readout", "readout", {"memory_readout": 3}),
    ("memory_readout_transposed", "readout", {"memory_readout": 3}),
]


@pytest.mark.parametrize("settings", [{}, {"num_stages": 3, "tile_rows": 32}], ids=str)
@pytest.mark.parametrize(("operator", "variant", "copies"), KERNELS)
def test_tiles_are_copied_by_the_tensor_memory_accelerator(operator, variant, copies, settings):
    schedule = dataclasses.replace(FUSED, variant=variant, **settings)
    # A readout has no use for descriptors where a chunk is one tile.
    spec = spec_of(operator=operator, chunk=64)
    assert why_illegal(spec, schedule, HOPPER) is None
    for kernel, part in parts(spec, schedule):
        source = render(kernel, part, schedule, HOPPER)
        ptx = backend("triton").inspect(source, part, schedule, HOPPER)["ptx"]
        assert ptx.count(COPY) >= copies[kernel]
        by_pointers = dataclasses.replace(schedule, loads="pointers")
        source = render(kernel, part, by_pointers, HOPPER)
        assert COPY not in backend("triton").inspect(source, part, by_pointers, HOPPER)["ptx"]


def test_a_readout_of_one_tile_has_pointers():
    spec, schedule = spec_of(), dataclasses.replace(FUSED, variant="split", tile_rows=32)
    assert why_illegal(spec, schedule, HOPPER) is None
    texts = {kernel: render(kernel, part, schedule, HOPPER).text for kernel, part in parts(spec, schedule)}
    assert "make_tensor_descriptor" in texts["trellis_update"]
    assert "make_tensor_descriptor" not in texts["memory_readout"]


def test_no_default_has_descriptors():
    for device in (HOPPER, NAMED["sm_80"], NAMED["gfx942"], cpu()):
        assert default("triton", spec_of(), device).settings()["loads"] == "pointers"


@pytest.mark.parametrize("device", [HOPPER, dataclasses.replace(HOPPER, arch="sm_100")], ids=lambda it: it.arch)
@pytest.mark.parametrize("sizes", [{}, {"chunk": 16}, {"dim_k": 8}, {"dtype": "float16", "dim_v": 40}], ids=str)
def test_legal(sizes, device):
    assert why_illegal(spec_of(**sizes), dataclasses.replace(FUSED, dot_precision="tf32x3"), device) is None


ILLEGAL = [
    ({}, {}, "sm_80", "sm_80 copies no tiles by tensor descriptors, sm_90 and later do"),
    ({}, {}, "gfx942", "gfx942 copies no tiles"),
    ({"chunk": 1}, {}, "sm_90", "tile_rows 16 must divide the chunk of 1 "),
    ({"chunk": 40}, {}, "sm_90", "tile_rows 16 must divide the chunk of 40"),
    ({"chunk": 48}, {"tile_rows": 32}, "sm_90", "tile_rows 32 must divide the chunk of 48"),
    ({"dim_k": 20}, {}, "sm_90", "multiple of 16 bytes, which dim_k 20 of bfloat16 is not"),
    ({"dim_v": 12}, {}, "sm_90", "dim_v 12 of bfloat16"),
    ({"slots": 2, "dtype": "float32"}, {"dot_precision": "ieee"}, "sm_90", "slots 2 of float32"),
    (
        {"operator": "memory_readout"},
        {"variant": "readout", "tile_rows": 32},
        "sm_90",
        "a readout of one tile has no loop",
    ),
    ({"direction": "backward"}, {"variant": "backward_split"}, "sm_90", "only the chunked kernels of a forward"),
    (
        {"operator": "trellis_step", "chunk": 1},
        {"variant": "recurrent", "dot_precision": "ieee"},
        "sm_90",
        "only the chunked kernels of a forward",
    ),
]


@pytest.mark.parametrize(("sizes", "settings", "arch", "reason"), ILLEGAL)
def test_illegal_schedules_say_why(sizes, settings, arch, reason):
    spec, schedule = spec_of(**sizes), dataclasses.replace(FUSED, **settings)
    assert reason in str(why_illegal(spec, schedule, NAMED[arch]))
    by_pointers = dataclasses.replace(schedule, loads="pointers", dot_precision="ieee")
    assert "descriptor" not in str(why_illegal(spec, by_pointers, NAMED[arch]))


@pytest.mark.parametrize(
    ("kernel", "operator", "names"),
    [
        ("trellis_fused", "trellis_attention", ["q", "k", "v", "target"]),
        ("memory_update", "memory_update", ["w", "target"]),
        ("memory_readout", "memory_readout", ["read", "w", "codes"]),
    ],
)
def test_what_is_described_is_what_a_kernel_reads(kernel, operator, names):
    arguments = kernel_arguments(kernel, spec_of(operator=operator), FUSED)
    source = Source(kernel, "tl.make_tensor_descriptor(", Path("kernel.py"), "digest")
    assert [arguments[place].name for place in triton_descriptors.described(source, arguments)] == names
    assert triton_descriptors.described(dataclasses.replace(source, text="tl.load("), arguments) == ()


def test_only_what_is_misaligned_is_copied():
    numbers = torch.arange(64.0)
    arguments = (numbers, numbers[1:], numbers[2:], numbers[4:], 7)
    aligned = triton_descriptors.aligned(arguments, (0, 1, 3))
    assert [one is other for one, other in zip(aligned, arguments, strict=True)] == [True, False, True, True, True]
    assert torch.equal(aligned[1], arguments[1])
    assert aligned[1].data_ptr() % triton_descriptors.ALIGNMENT == 0


def allocator() -> object:
    from triton.runtime import _allocation

    return _allocation._allocator.get()


def test_memory_comes_from_torch():
    def provided() -> object:
        triton_descriptors.provide_memory()
        return allocator()

    before = allocator()
    # Each of these contexts is as a new thread's.
    assert {contextvars.Context().run(provided) for _ in range(2)} == {triton_descriptors._from_torch}
    assert allocator() is before


def test_an_allocator_that_was_set_is_kept():
    def mine(size: int, alignment: int, stream: int | None) -> torch.Tensor:
        return torch.empty(size, dtype=torch.int8)

    def provided() -> object:
        triton.set_allocator(mine)
        triton_descriptors.provide_memory()
        return allocator()

    assert contextvars.Context().run(provided) is mine
