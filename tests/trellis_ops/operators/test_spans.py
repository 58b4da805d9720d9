"""Whether tensors of a step lie apart, by where they begin, against their bytes one by one."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from trellis_ops.operators import spans
from trellis_ops.operators.spans import Spans

PLACES = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)), min_size=2, max_size=6)


def bytes_meet(places, written):
    taken = [set(range(begin, begin + size)) for begin, size in places]
    pairs = itertools.combinations(range(len(places)), 2)
    return any(one < written and taken[one] & taken[other] for one, other in pairs)


@given(PLACES, st.integers(1, 3))
def test_spans_lie_apart_where_no_byte_is_written_and_shared(places, written):
    begins, sizes = (tuple(each) for each in zip(*places, strict=True))
    found = Spans(sizes, written)
    assert found.lie_apart(begins) is not bytes_meet(places, written)
    assert (begins in found.known) is not bytes_meet(places, written)


def test_what_is_known_has_a_bound():
    found = Spans((1, 1), 1)
    for place in range(3 * spans._MOST_KNOWN):
        assert found.lie_apart((place, place + 1))
        assert len(found.known) <= spans._MOST_KNOWN
