"""Laws that every rule obeys, whatever its fields, by the oracle and by the eager form."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor

from codegen.rule import SOLVE
from tests.trellis_ops.family.cases import Case, cases, inputs
from tests.trellis_ops.family.runs import (
    Attention,
    along,
    assert_all_same,
    assert_same,
    axes_of,
    cut,
    every_form,
    examples,
    per_token,
)


@every_form
@examples(40)
@drawn(case=cases(tokens=12), chunks=st.integers(0, 3))
def test_split_and_continue_is_the_whole(attention: Attention, case: Case, chunks: int) -> None:
    given, initial = inputs(case)
    begin = min(chunks * case.chunk, case.tokens)
    whole, finals = attention(case.rule, given, initial, chunk_size=case.chunk)
    first, between = attention(case.rule, cut(case.rule, given, 0, begin), initial, chunk_size=case.chunk)
    rest, last = attention(case.rule, cut(case.rule, given, begin, None), between, chunk_size=case.chunk)
    assert_same(torch.cat([first, rest], dim=1), whole, "y")
    assert_all_same(last, finals)


@every_form
@examples(40)
@drawn(case=cases(), kept=st.integers(0, 7))
def test_a_later_token_changes_no_earlier_output(attention: Attention, case: Case, kept: int) -> None:
    given, initial = inputs(case)
    kept = min(kept, case.tokens)
    others, _ = inputs(replace(case, seed=case.seed + 1))
    changed = {
        name: torch.cat([x[:, :kept], others[name][:, kept:]], dim=1) if name in per_token(case.rule) else x
        for name, x in given.items()
    }
    y, _ = attention(case.rule, given, initial, chunk_size=case.chunk)
    y_changed, _ = attention(case.rule, changed, initial, chunk_size=case.chunk)
    assert_same(y_changed[:, :kept], y[:, :kept], "y", 1e-13)


@every_form
@examples(40)
@drawn(case=cases(tokens=9), cuts=st.lists(st.integers(0, 9), min_size=1, max_size=3))
def test_packed_is_one_by_one(attention: Attention, case: Case, cuts: list[int]) -> None:
    case = replace(case, batch=1)
    middle = sorted(min(each, case.tokens) for each in cuts)
    # The first offset twice: one sequence is empty.
    offsets = torch.tensor([0, 0, *middle, case.tokens])
    given, initial = inputs(case, sequences=len(offsets) - 1)
    y, finals = attention(case.rule, given, initial, chunk_size=case.chunk, cu_seqlens=offsets)
    for n in range(len(offsets) - 1):
        begin, end = offsets[n : n + 2].tolist()
        own = {name: x[n : n + 1] for name, x in initial.items()}
        alone, last = attention(case.rule, cut(case.rule, given, begin, end), own, chunk_size=case.chunk)
        assert_same(y[:, begin:end], alone, "y", 1e-13)
        assert_all_same({name: x[n : n + 1] for name, x in finals.items()}, last, 1e-13)
        if begin == end:
            assert all(torch.equal(last[name], own[name]) for name in own)


@every_form
@examples(60)
@drawn(case=cases())
def test_slots_have_no_order(attention: Attention, case: Case) -> None:
    """Rows permuted in everything that has them: the output of one pass is permuted, that of two passes is the same."""
    if case.rule.link == SOLVE:
        # Its slots are the entries of q, and one regulariser belongs to each.
        case = replace(case, rule=replace(case.rule, link="identity"))
    given, initial = inputs(case)
    rows = "slots" if case.rule.passes == 2 else "dim_v"
    order = torch.randperm(case.sizes[rows], generator=torch.Generator().manual_seed(case.seed))

    def permuted(x: Tensor, axis: int) -> Tensor:
        return x.index_select(axis, order)

    y, finals = attention(case.rule, given, initial, chunk_size=case.chunk)
    groups = [along(group, case.rule, rows, group, permuted) for group in (given, initial)]
    y_permuted, finals_permuted = attention(case.rule, *groups, chunk_size=case.chunk)
    assert_same(y_permuted, y if case.rule.passes == 2 else permuted(y, -1), "y")
    assert_all_same(finals_permuted, along(finals, case.rule, rows, finals, permuted))


@every_form
@examples(40)
@drawn(case=cases(erase=False))
def test_no_decay_and_no_step_move_nothing(attention: Attention, case: Case) -> None:
    given, initial = inputs(case)
    given["step_size"] = torch.zeros_like(given["step_size"])
    if "log_decay" in given:
        given["log_decay"] = torch.zeros_like(given["log_decay"])
    initial |= {name: torch.zeros_like(x) for name, x in initial.items() if name[0] == "P"}
    read = {}
    for when in ("after", "before", "chunk_start"):
        rule = replace(case.rule, read=when)
        read[when], finals = attention(rule, given, initial, chunk_size=case.chunk)
        kept = [name for name in initial if not name.startswith("window")]
        assert all(torch.equal(finals[name], initial[name]) for name in kept)
    assert torch.equal(read["before"], read["after"])
    assert torch.equal(read["chunk_start"], read["after"])


@every_form
@examples(60)
@drawn(case=cases(), kind=st.sampled_from(("slot", "channel")))
def test_equal_gates_of_slots_or_channels_are_one_gate(attention: Attention, case: Case, kind: str) -> None:
    one = case.rule
    if one.decay == "none" or one.link == SOLVE:
        one = replace(one, decay="scalar", step_size="token", link="identity")
    case = replace(case, rule=replace(one, decay="scalar"))
    # A normaliser has no slots, and two passes have no channels in common.
    kinds = {"slot": "slot" if one.normaliser == "none" else "channel", "channel": "channel"}
    many = replace(case.rule, decay="slot" if one.passes == 2 else kinds[kind])
    given, initial = inputs(case)
    y, finals = attention(case.rule, given, initial, chunk_size=case.chunk)
    sizes = [case.sizes[axis] for axis in axes_of(many)["log_decay"]]
    log_decay = given["log_decay"].view(*given["log_decay"].shape, *([1] * len(sizes))).expand(-1, -1, -1, *sizes)
    y_many, finals_many = attention(many, given | {"log_decay": log_decay}, initial, chunk_size=case.chunk)
    assert_same(y_many, y, "y")
    assert_all_same(finals_many, finals)


@every_form
@examples(60)
@drawn(case=cases())
def test_a_hebbian_memory_is_the_sum_of_its_decayed_writes(attention: Attention, case: Case) -> None:
    """S_t = exp(L_t) o S_0 + sum over i <= t of gamma_i exp(L_t - L_i) o a_i w_i^T, with any gate and chunk."""
    plain = replace(_plain(case), window=1, step_size="token", read="after", out="identity", phi="hebbian")
    case = replace(case, rule=plain)
    given, initial = inputs(case)
    y, finals = attention(case.rule, given, initial, chunk_size=case.chunk)
    written = {"S": ("v", "k")} if case.rule.passes == 1 else {"S_k": ("target", "k"), "S_v": ("target", "v")}
    states = {name: _summed(case, given, *pair, initial[name]) for name, pair in written.items()}
    assert_all_same(finals, {name: x[:, -1] for name, x in states.items()})
    if case.rule.passes == 1:
        assert_same(y, torch.einsum("bthmd,bthd->bthm", states["S"], given["q"]), "y")


def _summed(case: Case, given: dict[str, Tensor], rows: str, columns: str, first: Tensor) -> Tensor:
    """The memory after each token, `[B, T, H, M, D]`."""
    gate = given.get("log_decay", torch.zeros_like(given["step_size"]))
    places = {"slot": (..., slice(None), None), "channel": (..., None, slice(None))}
    total = gate[places.get(case.rule.decay, (..., None, None))].cumsum(1)
    writes = torch.einsum("bth,bthm,bthd->bthmd", given["step_size"], given[rows], given[columns])
    earlier = torch.ones(case.tokens, case.tokens, dtype=torch.bool).tril()[:, :, None, None, None]
    kept = torch.where(earlier, (total[:, :, None] - total[:, None]).exp(), 0)
    return total.exp() * first[:, None] + (kept * writes[:, None]).sum(2)


@every_form
@examples(40)
@drawn(case=cases())
def test_a_write_is_repeated_for_every_token_of_the_window(attention: Attention, case: Case) -> None:
    """One token of weight 1 among others of 0, after a ring of zeros, is written `window` times."""
    if case.rule.passes == 2:
        case = replace(case, rule=replace(case.rule, link="identity"))
    case = replace(case, tokens=6, chunk=1, rule=replace(_plain(case), window=3, decay="none", phi="hebbian"))
    given, initial = inputs(case)
    initial |= {name: torch.zeros_like(x) for name, x in initial.items()}
    given["window_weight"] = torch.zeros_like(given["window_weight"])
    given["window_weight"][:, 1] = 1
    given["step_size"] = torch.ones_like(given["step_size"])
    _, finals = attention(case.rule, given, initial)
    _, once = attention(replace(case.rule, window=1), cut(case.rule, given, 1, 2), _without_window(initial))
    assert_all_same(_without_window(finals), {name: 3 * x for name, x in once.items()})


def _plain(case: Case) -> object:
    return replace(
        case.rule,
        view="identity",
        view_gradient=False,
        momentum=False,
        normaliser="none",
        erase=False,
        decay_first=False,
        step_size="head",
    )


def _without_window(states: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in states.items() if not name.startswith("window")}
