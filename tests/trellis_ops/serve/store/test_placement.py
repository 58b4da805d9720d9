from __future__ import annotations

import pytest
import torch

from codegen.errors import SizeError
from tests.trellis_ops.lm.small_models import make_model, some_tokens
from tests.trellis_ops.serve.store.stores import PROMPT, SEGMENT, check_same, store_of
from trellis_ops.serve.store import Placement
from trellis_ops.serve.store.placement import Junctions


@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        (Placement(), (128, 320)),
        (Placement(last=False), (128,)),
        (Placement(junctions=False), (320,)),
        (Placement(last=False, junctions=False), ()),
        (Placement(last=False, junctions=False, interval=100), (128, 256)),
        (Placement(interval=64), (128, 192, 256, 320)),
    ],
    ids=repr,
)
def test_what_is_wanted(placement, expected):
    assert placement.wanted(64, 320, 64, junction=128, declared=[]) == expected


def test_what_is_declared_is_wanted_in_whole_segments_beyond_what_is_stored():
    assert Placement(last=False).wanted(64, 320, 64, 0, [0, 63, 64, 200, 319, 320, 9999]) == (192, 256, 320)


def test_an_interval_below_one_token_is_refused():
    with pytest.raises(SizeError):
        Placement(interval=0)


def test_a_junction_is_as_far_as_an_earlier_prompt_goes():
    junctions = Junctions()
    assert [junctions.shared(each) for each in (["a", "b", "c"], ["a", "b", "d"], ["x"], ["a", "b", "d", "e"])] == [
        *(0, 2, 0, 3)
    ]


def test_junctions_remember_a_bounded_number_of_links(monkeypatch):
    monkeypatch.setattr("trellis_ops.serve.store.placement._MOST_SEEN", 3)
    junctions = Junctions()
    junctions.shared(["a", "b"])
    junctions.shared(["a", "c", "d"])
    assert (junctions.shared(["b"]), junctions.shared(["d"])) == (0, 1)


def test_the_third_prompt_with_a_beginning_need_not_read_it():
    model, store = make_model(), store_of()
    beginning = some_tokens(1, 2 * SEGMENT, seed=7)
    prompts = [torch.cat([beginning, some_tokens(1, PROMPT, seed=seed)], 1) for seed in (1, 2, 3)]
    request = store.tenant("alice")
    for prompt in prompts[:2]:
        check_same(model, prompt, request)
    lookup = request.lookup(model, prompts[2][0])
    assert (lookup.found, lookup.wanted) == (128, (320,))
    check_same(model, prompts[2], request)


def test_what_a_request_declares_is_kept():
    model, store = make_model(), store_of(placement=Placement(last=False))
    tokens = some_tokens(1, PROMPT)
    model.generate(tokens, 0, prefix_store=store.tenant("alice", save_at=[SEGMENT + 5]))
    assert store.tenant("alice").lookup(model, tokens[0]).found == SEGMENT
