"""The tokens of a tile at once where z is taken at the start of the chunk, against the oracle in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch

from codegen.device import cpu
from codegen.recurrence.forms import why_no_stale_form
from codegen.rule import Rule
from codegen.rules import NAMED
from codegen.schedules.legality import why_illegal
from codegen.schedules.tvm import TvmSchedule
from codegen.spec import Problem, Spec
from tests.support import stale_forms
from tests.support.linear_rules import Named
from tests.support.stale_forms import found, require_carried, require_close, require_strong_gates

WIDTH = cpu().vector_bits // 32
TITANS, TTT = NAMED["titans"].rule, NAMED["ttt_linear"].rule


@dataclass(frozen=True)
class Form:
    """A rule with C, and the tokens of a tile in vectors."""

    rule: Rule
    chunk: int
    vectors: int = 1

    @property
    def schedule(self) -> TvmSchedule:
        """The tiles; on two threads, each of which runs several programs on the same scratch."""
        return TvmSchedule("stale_chunks", self.vectors * WIDTH, WIDTH, accumulators=8, threads=2)


FORMS = {
    "titans": Form(TITANS, 20),
    "a_chunk_in_a_tile": Form(replace(TITANS, phi="softmax", out="ln_silu", decay_first=True, phi_eps=1e-2), 64, 4),
    "momentum_and_window": Form(replace(TITANS, phi="huber", window=4, read="before", probe="own"), 20),
    "window_longer_than_a_tile": Form(replace(NAMED["omeganet"].rule, window=WIDTH + 4), 5),
    "reader_of_tiles": Form(replace(TTT, read="before"), 40),
    "reader": Form(TTT, 16),
    "chunk_start": Form(replace(TITANS, phi="ln_silu", phi_eps=1e-2, read="chunk_start", decay="none"), 40),
    "channels": Form(replace(TITANS, phi="huber", decay="channel", decay_first=True, momentum=False), 20),
    "slots": Form(replace(TTT, decay="slot", step_size="token", read="before", probe="own"), 40),
    "slots_at_the_chunk_start": Form(
        replace(
            TITANS, phi="softmax", phi_eps=1e-2, decay="slot", decay_first=True, momentum=False, read="chunk_start"
        ),
        16,
    ),
    "hebbian": Form(replace(TITANS, phi="hebbian"), 1),
}


def drawn(form: Form, dtype: torch.dtype = torch.float32, sequences: int = 2, **sizes: int) -> tuple[Named, Named]:
    return stale_forms.drawn(form, dtype, sequences, **{"heads": 3, "dim_k": 24, "dim_v": 20} | sizes)


@pytest.mark.parametrize("name", FORMS)
def test_packed_sequences_with_states(name: str) -> None:
    """One is empty, one has one token, and others end inside a chunk and inside a tile."""
    form, offsets = FORMS[name], torch.tensor([0, 17, 17, 18, 53])
    require_close(form, *drawn(form, batch=1, sequences=4), offsets)


def test_one_slot_and_widths_that_fill_no_vector() -> None:
    form = FORMS["momentum_and_window"]
    require_close(form, *drawn(form, dim_k=100, dim_v=1))


def test_bfloat16() -> None:
    form = FORMS["titans"]
    require_close(form, *drawn(form, torch.bfloat16), bound=2e-2)


@pytest.mark.parametrize("name", ["titans", "channels", "slots"])
def test_strong_gates_forget_exactly(name: str) -> None:
    require_strong_gates(FORMS[name], *drawn(FORMS[name]))


@pytest.mark.parametrize("cuts", [(20, 40), (7, 30)], ids=["between_chunks", "inside_chunks"])
def test_states_are_carried_to_another_call(cuts: tuple[int, int]) -> None:
    form = FORMS["momentum_and_window"]
    require_carried(form, *drawn(form), cuts)


@pytest.mark.parametrize("name", ["momentum_and_window", "reader_of_tiles", "channels"])
def test_a_head_that_is_not_finite_stays_alone(name: str) -> None:
    form = FORMS[name]
    given, first = drawn(form)
    clean, last = found(form, given, first)
    for each, (token, head) in {"v": (3, 0), "k": (9, 0), "step_size": (25, 1)}.items():
        given[each][0, token, head] = torch.nan
    first["S"][0, 1, 0, 0] = torch.inf
    y, final = found(form, given, first)
    assert not y[0, 40:, :2].isfinite().any() and not final["S"][0, :2].isfinite().all()
    assert torch.equal(y[0, :, 2:], clean[0, :, 2:]) and torch.equal(y[1], clean[1])
    for state, before in last.items():
        assert torch.equal(final[state][0, 2:], before[0, 2:]) and torch.equal(final[state][1], before[1])


@pytest.mark.parametrize(
    ("name", "chunk", "variant"),
    [
        *(("titans", chunk, "stale_chunks") for chunk in (16, 64)),
        *((name, 16, "stale_chunks") for name in ("yaad", "moneta", "omeganet", "ttt_linear", "deltanet", "comba")),
        *((name, 16, "chunks") for name in ("gla", "gsa")),
        *(("linear", 16, "chunks"), ("in_place_ttt", 64, "chunks"), ("titans", 8, "recurrence")),
        *((name, 16, "recurrence") for name in ("kda", "gdn2", "rwkv7", "oja", "infini", "lattice", "memora")),
    ],
)
def test_what_serves_a_rule(name: str, chunk: int, variant: str) -> None:
    spec = Spec(NAMED[name].rule, Problem("memory_attention", heads=1, chunk=chunk))
    own = TvmSchedule.default(spec, cpu())
    assert own.variant == variant
    legal = why_illegal(spec, replace(FORMS["titans"].schedule, tile_tokens=WIDTH), cpu()) is None
    assert legal is (why_no_stale_form(spec.rule, chunk) is None)
    assert legal or variant != "stale_chunks"


def test_wide_states_with_gates_of_columns_are_computed_so() -> None:
    spec = Spec(NAMED["kda"].rule, Problem("memory_attention", dim_k=128, dim_v=128, slots=128, chunk=64))
    own = TvmSchedule.default(spec, cpu())
    assert own.variant == "stale_chunks" and why_illegal(spec, own, cpu()) is None
    reason = why_illegal(spec, replace(own, tile_tokens=2 * own.vector_width), cpu())
    assert reason is not None and "a tile of gates of each slot or column is one vector" in reason


@pytest.mark.parametrize(
    "fields",
    [
        *({"decay": decay} for decay in ("slot", "channel")),  # With momentum.
        *({name: True} for name in ("erase", "transposed")),
        *({"normaliser": "read", "momentum": False}, {"view": "softmax"}, {"passes": 2}),
    ],
    ids=str,
)
def test_a_rule_that_needs_more_is_not_computed_so(fields: dict[str, object]) -> None:
    assert why_no_stale_form(TITANS, 16) is None
    assert why_no_stale_form(replace(TITANS, **fields), 16)


def test_a_chunk_of_one_token_is_not_computed_so() -> None:
    assert why_no_stale_form(TITANS, 1) and why_no_stale_form(TTT, 1)
    assert why_no_stale_form(replace(TITANS, phi="hebbian"), 1) is None
