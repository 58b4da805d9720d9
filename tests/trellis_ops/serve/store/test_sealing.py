from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from tests.trellis_ops.serve.store.stores import KEY, OTHER_KEY, entry
from trellis_ops.errors import DamagedStateError
from trellis_ops.serve.store.chain import Secrets
from trellis_ops.serve.store.sealing import seal, unseal

SECRETS = Secrets.of(KEY)
TENSORS = {"0.S_k": torch.randn(1, 2, 3), "0.tail": torch.randn(1, 3, 4).bfloat16(), "0.none": torch.zeros(0)}
SEALED = seal(SECRETS, entry(), TENSORS)


def test_a_state_comes_back_bit_by_bit_and_shares_no_memory():
    found = unseal(SECRETS, entry(), SEALED)
    assert {name: each.dtype for name, each in found.items()} == {name: each.dtype for name, each in TENSORS.items()}
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    for each in found.values():
        each.add_(1)
    assert torch.equal(unseal(SECRETS, entry(), SEALED)["0.S_k"], TENSORS["0.S_k"])


def test_behind_the_seal_are_safetensors(tmp_path):
    (tmp_path / "state").write_bytes(SEALED[40:])
    with safe_open(tmp_path / "state", "pt") as file:
        assert set(file.keys()) == set(TENSORS)


@given(st.integers(0, 8 * len(SEALED) - 1))
def test_a_flipped_bit_is_damage(bit):
    damaged = bytearray(SEALED)
    damaged[bit // 8] ^= 1 << bit % 8
    with pytest.raises(DamagedStateError, match="seal"):
        unseal(SECRETS, entry(), bytes(damaged))


@given(st.integers(0, len(SEALED) - 1), st.binary(max_size=9))
def test_a_cut_or_longer_state_is_damage(length, more):
    for damaged in (SEALED[:length], SEALED + b"\0" + more):
        with pytest.raises(DamagedStateError):
            unseal(SECRETS, entry(), damaged)


def test_a_state_in_the_place_of_another_is_damage():
    with pytest.raises(DamagedStateError):
        unseal(SECRETS, entry(1), SEALED)


def test_a_state_that_another_key_sealed_is_damage():
    with pytest.raises(DamagedStateError):
        unseal(Secrets.of(OTHER_KEY), entry(), SEALED)


def test_what_is_no_safetensors_behind_a_right_seal_is_damage(monkeypatch):
    monkeypatch.setattr("trellis_ops.serve.store.sealing.save", lambda tensors: b"\xff" * 64)
    with pytest.raises(DamagedStateError, match="safetensors says"):
        unseal(SECRETS, entry(), seal(SECRETS, entry(), TENSORS))
