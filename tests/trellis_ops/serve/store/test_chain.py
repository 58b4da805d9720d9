from __future__ import annotations

import hmac

import pytest
import torch

from codegen.errors import SizeError
from tests.trellis_ops.lm.small_models import some_tokens
from tests.trellis_ops.serve.store.stores import KEY, OTHER_KEY, SEGMENT
from trellis_ops.serve.store.chain import REGISTERED, SCHEMA, SHARED, TENANT, Chain, Secrets, segment_of

TOKENS = some_tokens(1, 5 * SEGMENT + 3)[0]


def keys(tokens=TOKENS, *, key=KEY, model="model", kind=TENANT, name="alice", segment=SEGMENT):
    secrets = Secrets.of(key)
    chain = Chain(secrets, secrets.owner(model, kind, name), segment)
    chain.extend(tokens)
    return chain.keys


def test_a_link_names_all_tokens_before_it():
    changed = TOKENS.clone()
    changed[2 * SEGMENT] += 1
    before, after = keys(), keys(changed)
    assert len(before) == 5
    assert before[:2] == after[:2]
    assert not set(before[2:]) & set(after)


def test_a_link_is_the_hmac_of_the_one_before_and_its_tokens():
    secrets = Secrets.of(KEY)
    owner = secrets.owner("model", TENANT, "alice")
    link = hmac.digest(secrets.chaining, f"{SCHEMA}\0{owner.label}\0{owner.scope}\0{SEGMENT}".encode(), "sha256")
    for key, tokens in zip(keys(), TOKENS.split(SEGMENT), strict=False):
        link = hmac.digest(secrets.chaining, link + tokens.to(torch.int32).numpy().tobytes(), "sha256")
        assert key == link.hex()


def test_a_chain_that_grows_is_that_of_the_whole():
    secrets = Secrets.of(KEY)
    for piece in (1, 7, SEGMENT, 100):
        chain = Chain(secrets, secrets.owner("model", TENANT, "alice"), SEGMENT)
        for part in TOKENS.split(piece):
            chain.extend(part)
        assert chain.keys == keys()


@pytest.mark.parametrize(
    "other",
    [
        {"key": OTHER_KEY},
        {"model": "another"},
        {"name": "bob"},
        {"name": "alice\0"},
        {"name": "alice\ud800"},
        {"kind": SHARED},
        {"kind": REGISTERED},
        {"segment": 2 * SEGMENT},
    ],
    ids=repr,
)
def test_another_owner_shares_no_link(other):
    assert not set(keys()) & set(keys(**other))


def test_the_same_owner_has_the_same_links():
    assert keys() == keys(TOKENS.to(torch.int32))


def test_owners_tell_no_name():
    owner = Secrets.of(KEY).owner("model", TENANT, "alice")
    assert "alice" not in repr(owner)
    assert owner.label == Secrets.of(KEY).owner("model", TENANT, "bob").label
    assert owner.label != Secrets.of(KEY).owner("another", TENANT, "alice").label


@pytest.mark.parametrize(("chunk", "segment"), [(1, 64), (16, 64), (48, 96), (64, 64), (100, 100)])
def test_segments_are_whole_chunks(chunk, segment):
    assert segment_of(chunk) == segment


@pytest.mark.parametrize(("key", "error"), [("k" * 32, TypeError), (b"k" * 31, SizeError)])
def test_a_weak_key_is_refused(key, error):
    with pytest.raises(error, match="token_bytes"):
        Secrets.of(key)
