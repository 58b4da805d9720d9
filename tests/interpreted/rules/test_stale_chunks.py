"""The tokens of a tile at once where z is taken at the start of the chunk, on Triton, against the oracle in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from codegen.device import cpu, named
from codegen.recurrence.forms import why_no_stale_form
from codegen.rule import Rule
from codegen.rules import NAMED
from codegen.schedules.legality import why_illegal
from codegen.schedules.triton import TritonSchedule
from codegen.spec import Problem, Spec
from tests.support import stale_forms
from tests.support.linear_rules import Named
from tests.support.relative_error import relative_error
from tests.support.stale_forms import found, require_carried, require_close, require_strong_gates
from trellis_ops import explain, memory_attention

TITANS, TTT, YAAD = (NAMED[name].rule for name in ("titans", "ttt_linear", "yaad"))
SCHEDULE = TritonSchedule("stale_chunks", 16, num_warps=4, num_stages=1, dot_precision="ieee")


@dataclass(frozen=True)
class Form:
    """A rule with C, and the tokens of a tile."""

    rule: Rule
    chunk: int
    tile: int = 16

    @property
    def schedule(self) -> TritonSchedule:
        return replace(SCHEDULE, tile_rows=self.tile)


FORMS = {
    "titans": Form(TITANS, 20),
    "a_chunk_in_a_tile": Form(replace(TITANS, phi="softmax", out="ln_silu", phi_eps=1e-2), 25, 32),
    "momentum_and_window": Form(replace(TITANS, phi="huber", window=4, read="before", probe="own"), 20),
    "momentum_without_decay": Form(replace(TITANS, decay="none", window=3), 7),
    "window_longer_than_a_tile": Form(replace(NAMED["omeganet"].rule, window=20), 5),
    "hebbian_window": Form(replace(NAMED["omeganet"].rule, phi="hebbian", window=17, decay="none", read="before"), 1),
    "reader_of_tiles": Form(replace(TTT, read="before"), 40),
    "reader_of_tiles_after": Form(TTT, 40),
    "reader": Form(TTT, 16),
    "reader_before": Form(replace(TTT, read="before"), 16),
    "reader_at_the_chunk_start": Form(replace(TTT, read="chunk_start"), 40),
    "chunk_start": Form(replace(TITANS, phi="ln_silu", phi_eps=1e-2, read="chunk_start", decay="none"), 40),
    "channels": Form(replace(YAAD, decay="channel", read="before"), 20),
    "channels_after": Form(replace(YAAD, decay="channel", step_size="head"), 16),
    "slots": Form(replace(TTT, decay="slot", step_size="token", read="before", probe="own"), 40),
    "slots_after": Form(replace(YAAD, decay="slot"), 20),
    "slots_at_the_chunk_start": Form(replace(YAAD, phi="softmax", phi_eps=1e-2, decay="slot", read="chunk_start"), 16),
    "scalar": Form(replace(YAAD, read="before", out="silu"), 20),
    "hebbian": Form(replace(TITANS, phi="hebbian"), 1),
}


def drawn(form: Form, dtype: torch.dtype = torch.float32, sequences: int = 1, **sizes: int) -> tuple[Named, Named]:
    return stale_forms.drawn(form, dtype, sequences, **{"batch": 1, "heads": 2, "dim_k": 12, "dim_v": 10} | sizes)


@pytest.mark.parametrize("name", FORMS)
def test_packed_sequences_with_states(name: str) -> None:
    """One is empty, one has one token, and others end inside a chunk and inside a tile."""
    require_close(FORMS[name], *drawn(FORMS[name], sequences=4), torch.tensor([0, 17, 17, 18, 53]))


def test_one_slot_and_a_width_that_is_no_power_of_two() -> None:
    require_close(FORMS["momentum_and_window"], *drawn(FORMS["momentum_and_window"], dim_k=40, dim_v=1))


def test_a_call_is_served_so() -> None:
    given, first = drawn(Form(TITANS, 16))
    arguments = (given.pop("q"), given.pop("k"), given.pop("v"), None)
    call = {"rule": "titans", "chunk_size": 16, "initial_state": tuple(first.values()), "output_final_state": True}
    used = explain(memory_attention, *arguments, **given, **call, implementation="triton").schedule
    assert used is not None and "variant=stale_chunks," in used
    y, states = memory_attention(*arguments, **given, **call, implementation="triton")
    right, finals = memory_attention(*arguments, **given, **call, implementation="eager")
    assert all(relative_error(x, exact) < 1e-5 for x, exact in zip((y, *states), (right, *finals), strict=True))


@pytest.mark.parametrize("name", ["titans", "momentum_and_window", "reader_of_tiles", "slots"])
def test_bfloat16(name: str) -> None:
    require_close(FORMS[name], *drawn(FORMS[name], torch.bfloat16), bound=2e-2)


@pytest.mark.parametrize("name", ["titans", "momentum_and_window", "channels", "slots", "scalar"])
def test_strong_gates_forget_exactly(name: str) -> None:
    require_strong_gates(FORMS[name], *drawn(FORMS[name]))


def test_a_momentum_of_zero_and_of_either_sign() -> None:
    given, first = drawn(FORMS["titans"])
    eta = given["momentum"]
    eta.copy_(torch.tensor([0.0, -0.9, 0.9, 1.0])[torch.arange(eta.numel()).view_as(eta) % 4])
    require_close(FORMS["titans"], given, first)


@pytest.mark.parametrize("cuts", [(20, 40), (7, 30)], ids=["between_chunks", "inside_chunks"])
def test_states_are_carried_to_another_call(cuts: tuple[int, int]) -> None:
    form = FORMS["momentum_and_window"]
    require_carried(form, *drawn(form), cuts)


@pytest.mark.parametrize("name", ["momentum_and_window", "reader_of_tiles", "channels"])
def test_a_head_that_is_not_finite_stays_alone(name: str) -> None:
    form = FORMS[name]
    given, first = drawn(form, heads=3)
    clean, last = found(form, given, first)
    for each, (token, head) in {"v": (3, 0), "k": (9, 0), "step_size": (25, 1)}.items():
        given[each][0, token, head] = torch.nan
    first["S"][0, 1, 0, 0] = torch.inf
    y, final = found(form, given, first)
    assert not y[0, 40:, :2].isfinite().any() and not final["S"][0, :2].isfinite().all()
    assert torch.equal(y[0, :, 2:], clean[0, :, 2:])
    for state, before in last.items():
        assert torch.equal(final[state][0, 2:], before[0, 2:])


def test_the_form_is_admitted_where_that_of_tvm_is() -> None:
    for name, known in NAMED.items():
        for chunk in (1, 16, 64):
            spec = Spec(known.rule, Problem("memory_attention", heads=1, chunk=chunk))
            # No call has these with chunks of several tokens.
            decayed = known.rule.decay_first and known.rule.phi != "hebbian"
            legal = why_no_stale_form(known.rule, chunk) is None and not decayed
            assert (why_illegal(spec, SCHEDULE, cpu()) is None) is legal, name


@pytest.mark.parametrize(
    ("fields", "settings", "reason"),
    [
        ({"decay_first": True, "momentum": False}, {}, "not decayed first"),
        ({"window": 2}, {"num_stages": 2}, "num_stages must be 1"),
        ({}, {"tile_rows": 64}, "exceeds the chunk of 20 tokens"),
        ({}, {"loads": "descriptors"}, "loads must be 'pointers'"),
        ({"erase": True}, {}, "the form has no erase=True"),
        ({"decay": "channel"}, {}, "not with decay='channel'"),
    ],
)
def test_refusals(fields: dict[str, object], settings: dict[str, int], reason: str) -> None:
    spec = Spec(replace(TITANS, **fields), Problem("memory_attention", chunk=20))
    said = why_illegal(spec, replace(SCHEDULE, num_warps=8, dot_precision="tf32x3", **settings), named("sm_90"))
    assert said is not None and reason in said


@pytest.mark.parametrize(
    ("name", "chunk", "variant"),
    [
        *((name, 16, "stale_chunks") for name in ("titans", "omeganet", "ttt_linear", "comba")),
        *(("in_place_ttt", 40, "stale_chunks"), ("yaad", 16, "split_one_pass"), ("gla", 16, "chunks")),
        *(("titans", 8, "recurrence"), ("titans", 1, "recurrence"), ("infini", 16, "recurrence")),
    ],
)
def test_defaults(name: str, chunk: int, variant: str) -> None:
    spec = Spec(NAMED[name].rule, Problem("memory_attention", tokens=64, chunk=chunk))
    schedule = TritonSchedule.default(spec, cpu())
    assert schedule.variant == variant
    assert why_illegal(spec, schedule, cpu()) is None
