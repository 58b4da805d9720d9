from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from codegen.errors import SizeError
from tests.support.relative_error import relative_error
from tests.trellis_ops.lm.small_models import SMALL, make_model, some_tokens
from tests.trellis_ops.serve.store.stores import PROMPT, ROOM, SEGMENT, check_same, logits_after, store_of
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.store import Disk, Memory

TOKENS = some_tokens(2, PROMPT)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"decode": "exact"},
        {"chunk_size": 48},
    ],
    ids=repr,
)
def test_a_hit_generates_what_no_store_does(changes):
    model, store = make_model(**changes), store_of()
    request = store.tenant("alice")
    for _ in range(2):
        check_same(model, TOKENS, request)
    found = request.lookup(model, TOKENS[0]).found
    assert found == (PROMPT - 1) // SEGMENT * SEGMENT or changes == {"chunk_size": 48}
    assert found > 0
    assert store.counts().misses == {"unknown": 2}
    assert store.counts().hits == {"memory": 7}
    assert store.counts().faults == {}


def test_a_hit_of_another_rule_generates_what_no_store_does():
    torch.manual_seed(0)
    model, store = TrellisLM(replace(SMALL, rule="gsa", chunk_size=None)), store_of()
    request = store.tenant("alice")
    for _ in range(2):
        check_same(model, TOKENS, request)
    assert store.counts().hits == {"memory": 6}


def test_a_wrong_state_would_show():
    model, store = make_model(), store_of()
    request = store.tenant("alice")
    model.generate(TOKENS[:1], 0, prefix_store=request)
    lookup = request.lookup(model, TOKENS[0])
    lookup.save(lookup.found, {name: 1.5 * each for name, each in lookup.tensors.items()})
    changed = logits_after(model, TOKENS[:1], request)
    assert relative_error(changed, logits_after(model, TOKENS[:1], None)) > 1e-3


def test_the_longest_prefix_below_the_whole_prompt_is_found():
    model, store = make_model(), store_of()
    long = some_tokens(1, 5 * SEGMENT + 1)
    for length in (SEGMENT + 1, 3 * SEGMENT + 1):
        model.generate(long[:, :length], 0, prefix_store=store.tenant("alice"))
    found = {
        length: store.tenant("alice").lookup(model, long[0, :length]).found
        for length in (1, SEGMENT, SEGMENT + 1, 3 * SEGMENT, 3 * SEGMENT + 1, 5 * SEGMENT + 1)
    }
    assert list(found.values()) == [0, 0, SEGMENT, SEGMENT, 3 * SEGMENT, 3 * SEGMENT]
    assert store.counts().misses == {"short": 2, "unknown": 1}


def test_rows_with_other_stored_prefixes_are_read_in_one_call():
    model, store = make_model(), store_of()
    request = store.tenant("alice")
    longer = some_tokens(4, PROMPT + 2 * SEGMENT)
    model.generate(longer[1:2, : SEGMENT + 1], 0, prefix_store=request)
    model.generate(longer[2:3, :PROMPT], 0, prefix_store=request)
    assert [request.lookup(model, row).found for row in longer] == [0, SEGMENT, 3 * SEGMENT, 0]
    check_same(model, longer, request)
    assert [request.lookup(model, row).found for row in longer] == [5 * SEGMENT] * 4


def test_a_state_that_was_loaded_is_nobody_elses():
    model, store = make_model(), store_of()
    request = store.tenant("alice")
    model.generate(TOKENS, 0, prefix_store=request)
    for each in request.lookup(model, TOKENS[0]).tensors.values():
        each.fill_(float("nan"))
    check_same(model, TOKENS, request)


def test_no_tenant_finds_what_another_stored():
    model, store = make_model(), store_of()
    model.generate(TOKENS, 0, prefix_store=store.tenant("alice"))
    assert store.tenant("alice").lookup(model, TOKENS[0]).found == 3 * SEGMENT
    for other in ("bob", "Alice", "alice ", "alice\0"):
        for until in (0, PROMPT):
            assert store.tenant(other, public_until=until).lookup(model, TOKENS[0]).found == 0


def test_what_is_declared_public_is_shared_up_to_the_first_private_token_in_whole_segments():
    model, store = make_model(), store_of()
    model.generate(TOKENS[:1], 0, prefix_store=store.tenant("alice", public_until=2 * SEGMENT + 63))
    assert store.tenant("alice").lookup(model, TOKENS[0]).found == 3 * SEGMENT
    assert store.tenant("bob").lookup(model, TOKENS[0]).found == 0
    for until, found in ((2 * SEGMENT - 1, 0), (2 * SEGMENT, 2 * SEGMENT), (PROMPT, 2 * SEGMENT)):
        assert store.tenant("bob", public_until=until).lookup(model, TOKENS[0]).found == found
    check_same(model, TOKENS, store.tenant("carol", public_until=2 * SEGMENT))
    (shared,) = [each for each in store.shared() if each.tokens == 2 * SEGMENT and each.tenants > 1]
    assert (shared.registered, shared.tenants) == (False, 3)


def test_what_an_operator_registered_is_found_by_everybody_and_stays(tmp_path):
    model = make_model()
    kept = 3 * len(state_bytes(model))
    store = store_of(Memory(kept), Disk(tmp_path / "states", ROOM))
    assert store.register(model, TOKENS[0]) == 3 * SEGMENT
    for number in range(9):
        model.generate(some_tokens(1, PROMPT, seed=100 + number), 0, prefix_store=store.tenant(f"tenant {number}"))
    prompt = torch.cat([TOKENS, some_tokens(2, SEGMENT, seed=5)], 1)
    for tenant in ("alice", "bob"):
        assert store.tenant(tenant).lookup(model, prompt[0]).found == 3 * SEGMENT
        check_same(model, prompt[:1], store.tenant(tenant))
    assert store.counts().hits["memory"] >= 2
    (shared,) = store.shared()
    assert (shared.registered, shared.tenants, shared.tokens) == (True, 2, 3 * SEGMENT)
    again = store_of(Memory(ROOM), Disk(tmp_path / "states", ROOM))
    again.register(model, TOKENS[0])
    assert again.counts().hits == {"disk": 1}


def test_what_another_process_registered_is_found_up_to_the_length_that_is_named(tmp_path):
    model, disk = make_model(), Disk(tmp_path, ROOM)
    store_of(disk).register(model, TOKENS[0])
    for named, found in ((0, 0), (3 * SEGMENT - 1, 0), (3 * SEGMENT, 3 * SEGMENT), (PROMPT, 3 * SEGMENT)):
        store = store_of(disk, registered_tokens=named)
        assert store.tenant("alice").lookup(model, TOKENS[0]).found == found
    with pytest.raises(SizeError, match="registered_tokens"):
        store_of(disk, registered_tokens=-1)


def state_bytes(model):
    memory = Memory(ROOM)
    model.generate(TOKENS[:1], 0, prefix_store=store_of(memory).tenant("alice"))
    (sealed,) = memory._sealed.values()
    return sealed


def test_a_prefix_shorter_than_a_segment_is_not_registered():
    with pytest.raises(SizeError, match="at least 64"):
        store_of().register(make_model(), TOKENS[0, : SEGMENT - 1])


def test_what_a_slower_tier_has_is_copied_to_the_faster_ones(tmp_path):
    model, slow = make_model(), Disk(tmp_path / "states", ROOM)
    model.generate(TOKENS[:1], 0, prefix_store=store_of(slow).tenant("alice"))
    store = store_of(Memory(ROOM), slow)
    for _ in range(2):
        check_same(model, TOKENS[:1], store.tenant("alice"))
    assert store.counts().hits == {"disk": 1, "memory": 3}
    assert store.counts().saves == {"memory": 1}


@pytest.mark.parametrize("what", ["weights", "load_state_dict", "tokenizer", "config", "autocast", "dtype"])
def test_what_a_state_depends_on_is_part_of_its_key(what):
    model, memory = make_model(), Memory(ROOM)
    store = store_of(memory)
    model.generate(TOKENS, 0, prefix_store=store.tenant("alice"))
    assert store.tenant("alice").lookup(model, TOKENS[0]).found
    if what == "weights":
        with torch.no_grad():
            model.blocks[1].mlp.down.weight[3, 5] += 1e-3
    elif what == "load_state_dict":
        torch.manual_seed(5)
        model.load_state_dict(TrellisLM(SMALL).state_dict())
    elif what == "tokenizer":
        store = store_of(memory, tokenizer="another")
    elif what == "config":
        other = TrellisLM(replace(SMALL, decode="exact"))
        other.load_state_dict(model.state_dict())
        model = other
    elif what == "dtype":
        model = model.double()
    with torch.autocast("cpu", torch.bfloat16, enabled=what == "autocast"):
        assert store.tenant("alice").lookup(model, TOKENS[0]).found == 0


def test_the_same_weights_in_another_process_would_find_the_states():
    memory = Memory(ROOM)
    make_model().generate(TOKENS, 0, prefix_store=store_of(memory).tenant("alice"))
    assert store_of(memory).tenant("alice").lookup(make_model(), TOKENS[0]).found == 3 * SEGMENT


def test_what_is_written_past_torchs_counter_is_seen_after_forget():
    model, store = make_model(), store_of()
    model.generate(TOKENS, 0, prefix_store=store.tenant("alice"))
    model.embedding.weight.data[0] += 1
    store.forget(model)
    assert store.tenant("alice").lookup(model, TOKENS[0]).found == 0


def test_streams_take_a_store_and_other_arguments_are_refused_with_it():
    model, store = make_model(), store_of()
    request = store.tenant("alice")
    streamed = torch.stack(list(model.stream(TOKENS, 4, temperature=0, prefix_store=request)), 1)
    assert torch.equal(streamed, model.generate(TOKENS, 4, temperature=0)[:, PROMPT:])
    with pytest.raises(ValueError, match="state or prefix_store"):
        model.generate(TOKENS, 4, state=model.first_state(2), prefix_store=request)
    with pytest.raises(IndexError):
        model.generate(TOKENS + 40, 4, prefix_store=request)


def test_every_prompt_counts_once_and_no_count_is_left_out():
    model, store = make_model(), store_of()
    for length in (10, PROMPT, PROMPT):
        model.generate(TOKENS[:, :length], 0, prefix_store=store.tenant("alice"))
    counts = store.counts()
    assert sum(counts.hits.values()) + sum(counts.misses.values()) == 6
    assert (counts.tokens, counts.tokens_found) == (20 + 4 * PROMPT, 2 * 3 * SEGMENT)
    assert counts.saves == {"memory": 2}


def test_threads_use_one_store():
    model, store = make_model(), store_of()
    expected, wrong = model.generate(TOKENS, 4, temperature=0), []

    def work(tenant):
        for _ in range(3):
            found = model.generate(TOKENS, 4, temperature=0, prefix_store=store.tenant(tenant))
            if not torch.equal(found, expected):
                wrong.append(tenant)

    threads = [threading.Thread(target=work, args=(tenant,)) for tenant in ("alice", "alice", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"name": ""}, ValueError),
        ({"name": 5}, TypeError),
        ({"name": "a", "public_until": -1}, SizeError),
        ({"name": "a", "public_until": True}, TypeError),
        ({"name": "a", "save_at": [-1]}, SizeError),
    ],
    ids=repr,
)
def test_a_request_that_makes_no_sense_is_refused(arguments, error):
    with pytest.raises(error):
        store_of().tenant(**arguments)


@pytest.mark.parametrize("tiers", [[], [Memory(1), Memory(2)]])
def test_tiers_have_different_names(tiers):
    from trellis_ops.serve.store import PrefixStore

    with pytest.raises(ValueError, match="tiers are named"):
        PrefixStore(bytes(32), tiers)


def test_a_length_that_was_not_looked_up_is_not_saved():
    model, store = make_model(), store_of()
    lookup = store.tenant("alice").lookup(model, TOKENS[0])
    for length in (0, 1, SEGMENT + 1, 4 * SEGMENT, -SEGMENT):
        with pytest.raises(SizeError):
            lookup.save(length, {})
