"""Multi-query associative recall: what is asked was told, once."""

from __future__ import annotations

import pytest
import torch

from codegen.errors import SizeError
from trellis_ops.lm.recall.task import questions
from trellis_ops.lm.train.data.lanes import IGNORED


@pytest.mark.parametrize("pairs", [1, 5, 16])
def test_every_pair_is_told_and_asked_once(pairs: int) -> None:
    asked = questions(8, pairs, 32, torch.Generator().manual_seed(0))
    assert asked.tokens.shape == asked.targets.shape == (8, 4 * pairs)
    for tokens, targets in zip(asked.tokens, asked.targets, strict=True):
        keys, values = tokens[: 2 * pairs : 2].tolist(), tokens[1 : 2 * pairs : 2].tolist()
        assert len(set(keys)) == pairs
        assert max(keys) < 16 <= min(values)
        places = (targets != IGNORED).nonzero()[:, 0].tolist()
        assert min(places) >= 2 * pairs
        answers = {int(tokens[place]): int(targets[place]) for place in places}
        assert answers == dict(zip(keys, values, strict=True))


def test_the_generator_decides() -> None:
    first, again, other = (questions(4, 5, 32, torch.Generator().manual_seed(seed)).tokens for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_more_pairs_than_keys_are_refused() -> None:
    with pytest.raises(SizeError, match="pairs=17 is out of range; expected 1 to 16"):
        questions(1, 17, 32, torch.Generator())
