"""A mixer on states in a pool says what it says to each sequence alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from codegen.rules import NAMED
from tests.support.relative_error import relative_error
from trellis_ops.lm.block import Block
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.rules.named import rule_inputs
from trellis_ops.lm.sequences import Packed, Pooled, Rows

SLOTS = {"a": 4, "b": 0, "c": 2}
CALLS = ({"a": 3, "b": 6}, {"a": 1, "b": 1, "c": 1}, {"c": 5, "a": 6}, {"b": 1, "a": 1})
"""The tokens that each call reads of each sequence; chunks begin and end within calls and between them."""

MODELS: dict[str, dict[str, Any]] = {
    **{rule: {"rule": rule, "chunk_size": min(rule_inputs(rule).chunk, 4)} for rule in NAMED},
    "trellis": {"chunk_size": 4, "learned_state": True, "step_size": "token"},
    "no tail": {"chunk_size": 1, "conv_width": 1},
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_pieces_of_sequences_in_a_pool(name: str, monkeypatch: pytest.MonkeyPatch):
    # The operators have tests of their own.
    monkeypatch.setenv("TRELLIS_OPS_IMPLEMENTATION", "eager")
    torch.manual_seed(0)
    config = TrellisConfig(vocab_size=16, layers=1, width=16, heads=2, num_slots=4, **MODELS[name])
    mixer = Block(config).mixer
    pools = {
        key: torch.full((6, *shape[1:]), math.nan) for key, shape in mixer.state_shapes(1).items() if math.prod(shape)
    }
    whole = {key: torch.randn(1, sum(call.get(key, 0) for call in CALLS), config.width) for key in SLOTS}
    read, found = dict.fromkeys(SLOTS, 0), {key: list[Tensor]() for key in SLOTS}
    for call in CALLS:
        pieces = [whole[key][0, read[key] : read[key] + count] for key, count in call.items()]
        mixed = _mixed(mixer, pools, pieces, [SLOTS[key] for key in call], [read[key] for key in call])
        for (key, count), piece in zip(call.items(), mixed, strict=True):
            found[key].append(piece)
            read[key] += count
    for key, x in whole.items():
        alone, _ = mixer(x, None, Rows(1, x.shape[1], 0, 1), return_state=False)
        assert relative_error(torch.cat(found[key]), alone[0]) < 1e-5
    assert all(bool(pool[1].isnan().all()) for pool in pools.values()), "no call names slot 1"


def _mixed(
    mixer: Any, pools: dict[str, Tensor], pieces: list[Tensor], slots: list[int], seen: list[int]
) -> list[Tensor]:
    lengths = [len(each) for each in pieces]
    fresh = torch.tensor([place for place, count in enumerate(seen) if count == 0])
    ones = set(lengths) == {1}
    offsets = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    layout = Rows(len(pieces), 1, 0, 1) if ones else Packed(offsets, int(offsets[-1]), 0, 1)
    rows = Pooled(torch.tensor(slots), torch.tensor(seen, dtype=torch.int32), fresh if len(fresh) else None, layout)
    x = torch.stack(pieces) if ones else torch.cat(pieces)[None]
    return list(mixer.pooled(x, pools, rows).flatten(0, 1).split(lengths))
