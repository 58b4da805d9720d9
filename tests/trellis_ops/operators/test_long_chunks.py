"""A chunk that is longer than the sequences is one chunk, however long it is said to be."""

from __future__ import annotations

import pytest
import torch

from codegen.rule import Rule
from codegen.spec import CHUNKS_AS_GIVEN, effective_chunk, spec_of_key
from tests.support.inputs import make_inputs
from tests.support.relative_error import assert_close
from trellis_ops import explain, memory_readout, memory_update, reference, trellis_attention

TOKENS = 37
LONG = [2**31 - TOKENS, 2**31 - TOKENS + 1, 2**31 - 1, 2**31, 2**63, 2**70]
MAPS = {"phi": "silu", "link": "silu"}
RULE = Rule("silu", link="silu")


def inputs(sequences: int | None = None):
    return make_inputs(1, TOKENS, 2, 8, 6, 5, sequences=sequences)


@pytest.mark.parametrize("chunk", LONG)
@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_attention_its_packed_sequences_and_its_gradient(implementation, chunk):
    for offsets in (None, torch.tensor([0, 30, TOKENS])):
        x = inputs(None if offsets is None else 2)
        leaves, exact = x.leaves(), x.to(torch.float64).leaves()
        y, finals = trellis_attention(
            *leaves.args,
            **MAPS,
            chunk_size=chunk,
            initial_state=leaves.initial_state,
            output_final_state=True,
            cu_seqlens=offsets,
            implementation=implementation,
        )
        expected_y, expected_finals = reference.attention(
            *exact.args, rule=RULE, chunk_size=TOKENS, initial_state=exact.initial_state, cu_seqlens=offsets
        )
        for one, other in zip((y, *finals), (expected_y, *expected_finals), strict=True):
            assert_close(one.detach(), other.detach(), 1e-5, "outputs")
        found = torch.autograd.grad(y.sum() + finals[0].sum(), leaves.tensors)
        expected = torch.autograd.grad(expected_y.sum() + expected_finals[0].sum(), exact.tensors)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, 1e-4, "gradients")
        with torch.no_grad():
            plain, _ = trellis_attention(
                *x.args,
                **MAPS,
                chunk_size=chunk,
                initial_state=x.initial_state,
                cu_seqlens=offsets,
                implementation=implementation,
            )
        assert_close(plain, expected_y.detach(), 1e-5, "y")


@pytest.mark.parametrize("chunk", LONG)
@pytest.mark.parametrize("implementation", ["eager", "tvm"])
def test_update_and_readout(implementation, chunk):
    x = inputs()
    gates, options = (x.log_decay, x.step_size), {"chunk_size": chunk, "implementation": implementation}
    states, codes, final = memory_update(x.k, x.target, *gates, phi="silu", initial_state=x.initial_state[0], **options)
    expected = reference.update(x.k, x.target, *gates, rule=RULE, chunk_size=TOKENS, initial_state=x.initial_state[0])
    for one, other in zip((states, codes, final), expected, strict=True):
        assert_close(one, other, 1e-5, "update")
    assert states.shape[1] == 1
    o = memory_readout(x.q, x.k, states, codes, *gates, **options)
    assert_close(o, reference.readout(x.q, x.k, states, codes, *gates, chunk_size=TOKENS), 1e-5, "readout")


def test_a_carried_state_starts_a_chunk():
    x = inputs()
    options = {"chunk_size": 2**31 - 1, "output_final_state": True, "implementation": "tvm"} | MAPS
    first = x.tokens(0, 20)
    y_0, middle = trellis_attention(*first.args, initial_state=x.initial_state, **options)
    y_1, finals = trellis_attention(*x.tokens(20, TOKENS).args, initial_state=middle, **options)
    expected, expected_finals = reference.attention(*x.args, rule=RULE, chunk_size=20, initial_state=x.initial_state)
    assert_close(torch.cat([y_0, y_1], dim=1), expected, 1e-5, "y")
    for one, other in zip(finals, expected_finals, strict=True):
        assert_close(one, other, 1e-5, "states")


def test_kernels_are_as_few_as_powers_of_two():
    lengths = range(1, 20_000, 7)
    assert {effective_chunk(2**31, tokens) for tokens in lengths} == {2**n for n in range(10, 16)}
    for tokens in lengths:
        assert effective_chunk(2**31, tokens) >= tokens
        # Up to there a chunk is compiled as it is given, and one that ends inside a sequence always is.
        assert effective_chunk(CHUNKS_AS_GIVEN, tokens) == CHUNKS_AS_GIVEN
        assert effective_chunk(tokens - 1 or 1, tokens) == (tokens - 1 or 1)


def test_explain_tells_a_spec_that_can_be_read_again():
    found = explain(trellis_attention, *inputs().args, chunk_size=2**31 - 1)
    assert spec_of_key(found.spec).problem.chunk == CHUNKS_AS_GIVEN
    assert spec_of_key(explain(trellis_attention, *inputs().args, chunk_size=64).spec).problem.chunk == 64
