"""A step of kernels on states in pools is that of the same kernels on states in rows, to the bit."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trellis_ops.lm.decode.models import CHUNKED, EXACT, model_of
from trellis_ops.lm.decode.applies import Parts
from trellis_ops.lm.decode.decoder import fused_blocks, packed_bytes
from trellis_ops.lm.decode.pooled import fused_pooled
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.sequences import Packed, Pooled, Rows
from trellis_ops.lm.state import TrellisState

SLOTS = torch.tensor([5, 0, 3])
CAPACITY = 6
BESIDE = 3
"""Numbers behind the states of a slot that belong to nobody."""


class Blocks(nn.Module):
    """The blocks of a model without its logits, as an engine has them."""

    def __init__(self, model: TrellisLM) -> None:
        super().__init__()
        self.config, self.blocks = model.config, model.blocks

    def step_parts(self) -> Parts:
        return Parts(self.config, self.blocks, None, (self, self.blocks))


@dataclass(frozen=True)
class Layers:
    """Pools of every layer, all states of a slot side by side in one block of memory, NaN where nothing was put."""

    memory: list[Tensor]
    pools: list[dict[str, Tensor]]

    def put(self, state: TrellisState, slots: Tensor = SLOTS) -> None:
        for pools, layer in zip(self.pools, state.layers, strict=True):
            for name, tensor in layer.tensors().items():
                pools[name][slots] = tensor.float()


def layers_like(state: TrellisState) -> Layers:
    found = Layers([], [])
    for layer in state.layers:
        shapes = {name: tensor.shape[1:] for name, tensor in layer.tensors().items()}
        lengths = [shape.numel() for shape in shapes.values()]
        memory = torch.full((CAPACITY, sum(lengths) + BESIDE), torch.nan)
        parts = memory.split([*lengths, BESIDE], 1)
        found.memory.append(memory)
        found.pools.append(
            {name: part.unflatten(1, shape) for (name, shape), part in zip(shapes.items(), parts, strict=False)}
        )
    return found


def rows_at(positions: Tensor, fresh: Tensor | None = None, slots: Tensor = SLOTS) -> Pooled:
    return Pooled(slots, positions.to(torch.int32), fresh, Rows(len(slots), 1, 0, 1))


def moved(model: TrellisLM) -> tuple[Blocks, TrellisState, Tensor]:
    """The blocks, the states of three rows after six tokens, and the embeddings of the next one."""
    _, state = model(torch.randint(0, 256, (3, 6)))
    return Blocks(model), state, torch.randn(3, model.config.width)


@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
def test_rows_and_states_are_those_of_contiguous_states(config: dict[str, Any]):
    blocks, state, x = moved(model_of(config))
    layers = layers_like(state)
    layers.put(state)
    positions = torch.tensor([7, 6, 8])
    if blocks.config.keeps_starts:
        state.positions = positions % blocks.config.chunk
    for _ in range(3):
        given = fused_pooled(blocks, "float32", x.clone(), layers.pools, rows_at(positions))
        right = fused_blocks(blocks, "float32", x.clone(), state)
        assert given is not None and right is not None and torch.equal(given, right)
        state.advance(1, blocks.config.chunk)
        positions, x = positions + 1, right
    for layer, memory, pools in zip(state.layers, layers.memory, layers.pools, strict=True):
        for name, tensor in layer.tensors().items():
            assert torch.equal(pools[name][SLOTS], tensor), name
        assert memory.isnan().sum() == memory.numel() - 3 * (memory.shape[1] - BESIDE), "other slots are left alone"


def test_a_model_of_bfloat16_keeps_a_rounded_tail_in_pools_too():
    blocks, state, x = moved(model_of(CHUNKED).to(torch.bfloat16))
    layers, positions, x = layers_like(state), torch.tensor([6, 6, 6]), x.to(torch.bfloat16)
    layers.put(state)
    for _ in range(3):
        given = fused_pooled(blocks, "float32", x.clone(), layers.pools, rows_at(positions))
        right = fused_blocks(blocks, "float32", x.clone(), state)
        assert given is not None and right is not None and torch.equal(given, right)
        state.advance(1, blocks.config.chunk)
        positions, x = positions + 1, right
    for layer, pools in zip(state.layers, layers.pools, strict=True):
        assert torch.equal(pools["tail"][SLOTS], layer.tensors()["tail"].float())


@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
def test_a_row_that_begins_reads_nothing_of_its_slot(config: dict[str, Any]):
    model = model_of(config)
    blocks, state, x = moved(model)
    layers = layers_like(state)
    layers.put(state)
    for pools in layers.pools:
        for pool in pools.values():
            pool[SLOTS[1]] = torch.nan
    given = fused_pooled(
        blocks, "float32", x.clone(), layers.pools, rows_at(torch.tensor([6, 0, 6]), torch.tensor([1]))
    )
    right = fused_blocks(blocks, "float32", x[1:2].clone(), model.first_state(1))
    assert given is not None and right is not None and torch.equal(given[1], right[0])
    assert not any(bool(pool[SLOTS].isnan().any()) for pools in layers.pools for pool in pools.values())


@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
def test_a_row_that_is_not_finite_reaches_no_other(config: dict[str, Any]):
    """Neither by its state, which may be that of another request, nor by its token."""
    blocks, state, x = moved(model_of(config))
    rows, others = rows_at(torch.tensor([6, 6, 6])), [0, 2]
    found = []
    for poisoned in (None, "S_k", "tail", "x"):
        layers, embedded = layers_like(state), x.clone()
        layers.put(state)
        if poisoned == "x":
            embedded[1, 0] = torch.inf
        elif poisoned is not None:
            layers.pools[0][poisoned][SLOTS[1]] = torch.nan
        y = fused_pooled(blocks, "float32", embedded, layers.pools, rows)
        assert y is not None
        found.append((y, *(pool[SLOTS] for pools in layers.pools for pool in pools.values())))
    clean, *spoiled = found
    for each in spoiled:
        assert not each[0][1].isfinite().all()
        assert all(torch.equal(one[others], right[others]) for one, right in zip(each, clean, strict=True))


@pytest.mark.parametrize("config", [CHUNKED, EXACT], ids=["chunked", "exact"])
def test_a_step_counts_as_a_new_version_of_its_pools(config: dict[str, Any]):
    blocks, state, x = moved(model_of(config))
    layers = layers_like(state)
    layers.put(state)
    memories = {name for name in layers.pools[0] if not name.startswith("start")}
    before = [{name: pool._version for name, pool in pools.items()} for pools in layers.pools]
    assert fused_pooled(blocks, "float32", x, layers.pools, rows_at(torch.tensor([6, 6, 6]))) is not None
    for pools, versions in zip(layers.pools, before, strict=True):
        assert all(pools[name]._version > versions[name] for name in memories)


def test_pools_of_inference_mode_are_moved():
    blocks, state, x = moved(model_of(CHUNKED))
    rows, found = rows_at(torch.tensor([6, 6, 6])), []
    for mode in (torch.inference_mode(), torch.no_grad()):
        with mode:
            layers = layers_like(state)
            layers.put(state)
        found.append((fused_pooled(blocks, "float32", x.clone(), layers.pools, rows), layers.memory))
    assert found[0][1][0].is_inference()
    assert torch.equal(found[0][0], found[1][0])
    assert all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(found[0][1], found[1][1], strict=True))


def without_a_state(pools: dict[str, Tensor]) -> None:
    del pools["start_v"]


def with_a_state_too_many(pools: dict[str, Tensor]) -> None:
    pools["velocity"] = pools["S_k"].clone()


def of_another_type(pools: dict[str, Tensor]) -> None:
    pools["S_k"] = pools["S_k"].double()


def with_gaps(pools: dict[str, Tensor]) -> None:
    S_v = pools["S_v"]
    pools["S_v"] = S_v.new_zeros(*S_v.shape[:-1], 2 * S_v.shape[-1])[..., ::2]


def in_the_place_of_another(pools: dict[str, Tensor]) -> None:
    pools["start_k"] = pools["S_k"]


def of_more_slots(pools: dict[str, Tensor]) -> None:
    pools |= {name: pool.contiguous() for name, pool in pools.items()}
    pools["tail"] = torch.zeros(CAPACITY + 1, *pools["tail"].shape[1:])


FAULTS = (without_a_state, with_a_state_too_many, of_another_type, with_gaps, in_the_place_of_another, of_more_slots)


@pytest.mark.parametrize("fault", FAULTS)
def test_pools_that_no_kernel_takes_are_left_as_they_are(fault: Any):
    blocks, state, x = moved(model_of(CHUNKED))
    layers = layers_like(state)
    layers.put(state)
    fault(layers.pools[1])
    before = [memory.clone() for memory in layers.memory]
    assert fused_pooled(blocks, "float32", x, layers.pools, rows_at(torch.tensor([6, 6, 6]))) is None
    assert packed_bytes(blocks) > 0
    for memory, kept in zip(layers.memory, before, strict=True):
        assert torch.equal(memory.nan_to_num(9.0), kept.nan_to_num(9.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"slots": torch.tensor([5, -1, 3])},
        {"slots": torch.tensor([5, CAPACITY, 3])},
        {"positions": torch.tensor([6, -1, 6], dtype=torch.int32)},
        {"layout": Packed(torch.tensor([0, 1, 2, 3]), 3, 0, 1)},
    ],
    ids=["no slot", "a slot that the pools lack", "no position", "packed tokens"],
)
def test_rows_that_kernels_of_blocks_do_not_skip_are_left_to_the_modules(changes: dict[str, Any]):
    blocks, state, x = moved(model_of(CHUNKED))
    layers = layers_like(state)
    layers.put(state)
    rows = rows_at(torch.tensor([6, 6, 6]))
    assert fused_pooled(blocks, "float32", x.clone(), layers.pools, replace(rows, **changes)) is None
    assert fused_pooled(blocks, "float32", x.clone(), layers.pools, rows) is not None


def test_pools_that_lose_slots_or_move_are_looked_at_again():
    blocks, state, x = moved(model_of(CHUNKED))
    layers, rows = layers_like(state), rows_at(torch.tensor([6, 6, 6]))
    layers.put(state)
    assert fused_pooled(blocks, "float32", x.clone(), layers.pools, rows) is not None
    for pools in layers.pools:
        for pool in pools.values():
            pool.data = pool.data[: int(SLOTS.max())]
    kept = [memory.clone() for memory in layers.memory]
    assert fused_pooled(blocks, "float32", x.clone(), layers.pools, rows) is None
    assert all(torch.equal(x.nan_to_num(9.0), y.nan_to_num(9.0)) for x, y in zip(layers.memory, kept, strict=True))
    for pools in layers.pools:
        for pool in pools.values():
            pool.data = torch.zeros(CAPACITY, *pool.shape[1:])
    assert fused_pooled(blocks, "float32", x.clone(), layers.pools, rows) is not None
    assert all(bool(pools["S_k"][SLOTS].any()) for pools in layers.pools)
