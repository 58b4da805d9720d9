"""Windows in lanes: every token is a target once, in its order, and no lane sees two documents as one."""

from __future__ import annotations

import pytest
import torch

from trellis_ops.lm.train.data.lanes import IGNORED, Batch, Corpus, Lanes
from trellis_ops.lm.train.errors import TextError

SIZES = (23, 2, 9, 17, 40)
CORPUS = Corpus.of(list(torch.arange(sum(SIZES), dtype=torch.int32).split(list(SIZES))))


def targets_of(lanes: Lanes, steps: range) -> list[int]:
    return [target for step in steps for target in lanes.batch(step).counted().tolist()]


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_measuring_reads_every_target_once(batch: int) -> None:
    lanes = Lanes(CORPUS, batch, 8)
    firsts = {0, 23, 25, 34, 51}
    assert sorted(targets_of(lanes, range(lanes.steps))) == sorted(set(range(sum(SIZES))) - firsts)


def test_a_lane_goes_on_where_it_was_unless_it_is_fresh() -> None:
    lanes = Lanes(CORPUS, 2, 8, seed=3)
    begins = {0, 23, 25, 34, 51}
    before: Batch | None = None
    for step in range(3 * lanes.steps):
        batch = lanes.batch(step)
        assert torch.equal(batch.targets[batch.targets != IGNORED], (batch.tokens + 1)[batch.targets != IGNORED])
        for lane in range(2):
            start = int(batch.tokens[lane, 0])
            new_epoch = step % lanes.steps == 0
            assert bool(batch.fresh[lane]) == (new_epoch or start in begins)
            if before is not None and not batch.fresh[lane]:
                assert start == int(before.tokens[lane, -1]) + 1
        before = batch


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = Lanes(CORPUS, 2, 8, seed=0)
    epochs = [targets_of(first, range(i * first.steps, (i + 1) * first.steps)) for i in range(2)]
    again = Lanes(CORPUS, 2, 8, seed=0)
    assert targets_of(again, range(first.steps, 2 * first.steps)) == epochs[1]
    assert epochs[0] != epochs[1]
    assert targets_of(Lanes(CORPUS, 2, 8, seed=1), range(first.steps)) != epochs[0]


def test_processes_share_a_batch() -> None:
    whole = Lanes(CORPUS, 4, 8, seed=0).batch(1)
    parts = [whole.share(rank, 2) for rank in range(2)]
    for name in ("tokens", "targets", "fresh"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_too_little_text_is_refused() -> None:
    with pytest.raises(TextError, match="cannot fill 64 lanes"):
        Lanes(CORPUS, 64, 8, seed=0)
    with pytest.raises(TextError, match="none has two tokens"):
        Corpus.of([torch.zeros(1, dtype=torch.int32)])
