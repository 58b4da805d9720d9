"""Kernels whose tiles arrive by tensor descriptors, against the oracle in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from codegen.device import cpu
from codegen.kernels.build import build
from codegen.kernels.operator import CompiledOperator
from codegen.rule import MAPS, Rule
from codegen.schedules.schedule import VARIANTS
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Spec
from tests.support.cases.kernels import Build, Case, check_attention, check_readout, check_update
from tests.support.operators import run_attention

VARIANT = pytest.mark.parametrize("variant", ["fused", "split"])
DTYPE = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
TILES = pytest.mark.parametrize(("chunk", "tile"), [(16, 16), (48, 16), (32, 32), (64, 32)])
SIZES = {"dim_k": 24, "dim_v": 16, "slots": 40}


def triton(variant: str, tile: int = 16, loads: str = "descriptors") -> Build:
    def with_schedule(spec: Spec) -> CompiledOperator:
        schedule = TritonSchedule(variant, tile, num_warps=4, num_stages=1, dot_precision="tf32x3", loads=loads)
        return build(spec, schedule, cpu())

    return with_schedule


def case(**changes: object) -> Case:
    return Case(**{"chunk": 32, **SIZES, **changes})


@VARIANT
@DTYPE
@TILES
def test_packed_sequences(variant, dtype, chunk, tile):
    check_attention(
        triton(variant, tile), case(chunk=chunk, dtype=dtype, lengths=(0, 41, 0, 1, 32, 20, 65), packed=True)
    )


@VARIANT
@DTYPE
@pytest.mark.parametrize("length", [1, 15, 37, 67])
def test_odd_lengths(variant, dtype, length):
    check_attention(triton(variant), case(dtype=dtype, lengths=(length, length)))


@VARIANT
@pytest.mark.parametrize("phi", MAPS)
def test_every_write_map(variant, phi):
    check_attention(triton(variant), case(rule=Rule(phi, phi_eps=1e-2, step_size="token")))


@VARIANT
def test_the_state_is_carried(variant):
    whole = case(lengths=(96,))
    inputs = whole.inputs()
    compiled = triton(variant)(whole.spec)
    expected, expected_states = run_attention(compiled, inputs, (96,))
    states, parts = inputs.initial_state, []
    for begin, end in ((0, 64), (64, 96)):
        tokens = {
            name: getattr(inputs, name)[:, begin:end].contiguous() for name in ("q", "k", "v", "target", "log_decay")
        }
        part = dataclasses.replace(inputs, initial_state=states, **tokens)
        y, states = run_attention(compiled, part, (end - begin,))
        parts.append(y)
    assert torch.equal(torch.cat(parts, 1), expected)
    assert all(map(torch.equal, states, expected_states))


@VARIANT
@TILES
def test_descriptors_change_nothing(variant, chunk, tile):
    it = case(chunk=chunk, lengths=(61, 61))
    inputs = it.inputs()
    ways = [
        run_attention(triton(variant, tile, loads)(it.spec), inputs, it.lengths)
        for loads in ("pointers", "descriptors")
    ]
    (y, states), (other_y, other_states) = ways
    assert torch.equal(y, other_y)
    assert all(map(torch.equal, states, other_states))


@VARIANT
def test_no_token_of_the_next_sequence_is_read(variant):
    it = case(lengths=(37, 20), packed=True)
    inputs = it.inputs()
    compiled = triton(variant)(it.spec)
    clean, _ = run_attention(compiled, inputs, it.lengths)
    poisoned = {name: getattr(inputs, name).clone() for name in ("q", "k", "v", "target")}
    for tensor in poisoned.values():
        tensor[:, 37:] = float("nan")
    y, _ = run_attention(compiled, dataclasses.replace(inputs, **poisoned), it.lengths)
    assert torch.equal(y[:, :37], clean[:, :37])


@VARIANT
def test_tensors_that_no_descriptor_can_describe_are_copied(variant):
    it = case()
    inputs = it.inputs()
    compiled = triton(variant)(it.spec)
    expected, _ = run_attention(compiled, inputs, it.lengths)
    shifted = {name: misaligned(getattr(inputs, name)) for name in ("q", "k", "v", "target")}
    y, _ = run_attention(compiled, dataclasses.replace(inputs, **shifted), it.lengths)
    assert torch.equal(y, expected)


def misaligned(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape)
    assert copy.data_ptr() % 16
    return copy.copy_(tensor)


@TILES
def test_update(chunk, tile):
    check_update(triton("update", tile), case(operator="memory_update", chunk=chunk, lengths=(67, 67)))


@pytest.mark.parametrize("operator", ["memory_readout", "memory_readout_transposed"])
@pytest.mark.parametrize(("chunk", "tile"), [(32, 16), (48, 16), (64, 32)])
def test_readout(operator, chunk, tile):
    (variant,) = VARIANTS[operator]
    check_readout(triton(variant, tile), case(operator=operator, chunk=chunk, lengths=(67, 67)))
