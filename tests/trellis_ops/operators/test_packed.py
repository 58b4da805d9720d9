"""How packed sequences are batched."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from trellis_ops.eager.packed import similar_lengths


@given(st.lists(st.integers(0, 100), min_size=1, max_size=20))
def test_every_sequence_is_in_one_batch_that_is_at_most_half_padding(lengths: list[int]) -> None:
    offsets = [sum(lengths[:n]) for n in range(len(lengths) + 1)]
    batches = similar_lengths(offsets)
    assert sorted(n for batch in batches for n in batch) == list(range(len(lengths)))
    for batch in batches:
        in_batch = [lengths[n] for n in batch]
        assert max(in_batch) < 2 * min(in_batch) or max(in_batch) == min(in_batch)
