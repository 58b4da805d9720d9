"""Laws that every rule obeys, by TVM's kernels: one kernel of each form, compiled once, over random values.

The eager form and the oracle obey them in `test_laws.py`, over random rules. Here sizes are fixed, so that hypothesis
draws values, cuts and orders alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st
from torch import Tensor

from codegen.device import cpu
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rules import NAMED
from codegen.schedules.registry import default
from codegen.spec import Problem, Spec
from tests.trellis_ops.family.cases import Case, Named, inputs
from tests.trellis_ops.family.runs import along, assert_same, cut, examples, gradients, leaves, per_token
from trellis_ops import with_schedule
from trellis_ops.calls.called_rule import called
from trellis_ops.operators import family

TOKENS = 37
TOLERANCE = 2e-5
SIZES = {"batch": 2, "tokens": TOKENS, "heads": 3, "dim_k": 6, "dim_v": 5, "slots": 4}


@dataclass(frozen=True)
class Kernel:
    """A named rule with C, and the variant that its default schedule has for `TOKENS` tokens, whatever T is."""

    name: str
    chunk: int
    variant: str

    @property
    def case(self) -> Case:
        return Case(NAMED[self.name].rule, self.chunk, **SIZES)

    def attention(
        self, given: Named, initial: Named, cu_seqlens: Tensor | None = None, own_schedule: bool = False
    ) -> tuple[Tensor, Named]:
        """y and the final states; with `own_schedule` by what serves a call of so many tokens."""
        rule = self.case.rule
        text = called(rule, given["step_size"].ndim).text
        ordered = [given[each.name].contiguous() for each in tensors(rule)]
        first = [initial[name].contiguous() for name in states(rule)]
        settings = (text, self.chunk, "bilevel", own_schedule, "tvm")
        if own_schedule:
            y, *rest = family.attention(ordered, first, cu_seqlens, *settings)
        else:
            sizes = {name: SIZES[name] for name in ("dim_k", "dim_v")}
            slots = SIZES["slots" if rule.passes == 2 else "dim_v"]
            problem = Problem("memory_attention", tokens=TOKENS, slots=slots, chunk=self.chunk, **sizes)
            schedule = default("tvm", Spec(rule, problem), cpu())
            assert schedule.variant == self.variant
            with with_schedule(schedule):
                y, *rest = family.attention(ordered, first, cu_seqlens, *settings)
        return y, dict(zip(states(rule), rest, strict=False))


KERNELS = {
    kernel.name: kernel
    for kernel in (
        Kernel("linear", 1, "chunks"),
        Kernel("gla", 1, "chunks"),
        Kernel("gsa", 1, "chunks"),
        Kernel("gated_deltanet", 1, "chunks"),
        Kernel("yaad", 16, "stale_chunks"),
        Kernel("titans", 16, "stale_chunks"),
        Kernel("infini", 4, "recurrence"),
    )
}

seeds = st.integers(0, 2**16)


def of(*names: str) -> pytest.MarkDecorator:
    """The kernels of these rules."""
    return pytest.mark.parametrize("kernel", [KERNELS[name] for name in names], ids=names)


every_kernel = of(*KERNELS)


def values(kernel: Kernel, seed: int, sequences: int | None = None, **sizes: int) -> tuple[Named, Named]:
    """Float32 tensors whose keys have length one, so that no rule diverges."""
    given, initial = inputs(replace(kernel.case, seed=seed, **sizes), torch.float32, sequences)
    given["k"] = torch.nn.functional.normalize(given["k"], dim=-1)
    return given, initial


def assert_results(found: tuple[Tensor, Named], expected: tuple[Tensor, Named]) -> None:
    assert_same(found[0], expected[0], "y", TOLERANCE)
    assert found[1].keys() == expected[1].keys()
    for name, x in expected[1].items():
        assert_same(found[1][name], x, name, TOLERANCE)


@every_kernel
@examples(4)
@drawn(seed=seeds, begin=st.integers(0, TOKENS))
def test_split_and_continue_is_the_whole(kernel: Kernel, seed: int, begin: int) -> None:
    given, initial = values(kernel, seed)
    begin -= begin % kernel.chunk
    parts, state = [], initial
    for first, last in ((0, begin), (begin, TOKENS)):
        if first < last:
            y, state = kernel.attention(cut(kernel.case.rule, given, first, last), state)
            parts.append(y)
    assert_results((torch.cat(parts, dim=1), state), kernel.attention(given, initial))


@every_kernel
@examples(4)
@drawn(seed=seeds, cuts=st.lists(st.integers(0, TOKENS), min_size=1, max_size=3))
def test_packed_is_one_by_one(kernel: Kernel, seed: int, cuts: list[int]) -> None:
    offsets = [0, 0, *sorted(cuts), TOKENS]
    given, initial = values(kernel, seed, len(offsets) - 1, batch=1)
    y, finals = kernel.attention(given, initial, torch.tensor(offsets))
    for n, (begin, end) in enumerate(itertools.pairwise(offsets)):
        own = {name: x[n : n + 1] for name, x in initial.items()}
        last = {name: x[n : n + 1] for name, x in finals.items()}
        if begin == end:
            assert all(torch.equal(last[name], own[name]) for name in own)
        else:
            alone = kernel.attention(cut(kernel.case.rule, given, begin, end), own)
            assert_results((y[:, begin:end], last), alone)


@every_kernel
@examples(4)
@drawn(seed=seeds, kept=st.integers(0, TOKENS - 1))
def test_a_later_token_changes_no_earlier_output(kernel: Kernel, seed: int, kept: int) -> None:
    (given, initial), (others, _) = values(kernel, seed), values(kernel, seed + 1)
    changed = {
        name: torch.cat([x[:, :kept], others[name][:, kept:]], dim=1) if name in per_token(kernel.case.rule) else x
        for name, x in given.items()
    }
    y, _ = kernel.attention(given, initial)
    y_changed, _ = kernel.attention(changed, initial)
    assert torch.equal(y_changed[:, :kept], y[:, :kept])
    assert not torch.equal(y_changed[:, kept:], y[:, kept:])


@every_kernel
@examples(3)
@drawn(seed=seeds, order=st.permutations(range(3)))
def test_heads_and_sequences_have_no_order(kernel: Kernel, seed: int, order: list[int]) -> None:
    given, initial = values(kernel, seed)
    heads = {each.name: 0 if each.per == HEAD else 2 for each in tensors(kernel.case.rule)}

    def moved(x: Tensor, axis: int) -> Tensor:
        x = x.index_select(axis, torch.tensor(order))
        return x if axis == 0 else x.flip(0)

    y, finals = kernel.attention(given, initial)
    moved_given = {name: moved(x, heads[name]) for name, x in given.items()}
    y_moved, finals_moved = kernel.attention(moved_given, {name: moved(x, 1) for name, x in initial.items()})
    assert torch.equal(y_moved, moved(y, 2))
    assert all(torch.equal(finals_moved[name], moved(x, 1)) for name, x in finals.items())


@every_kernel
@examples(3)
@drawn(seed=seeds)
def test_slots_have_no_order(kernel: Kernel, seed: int) -> None:
    """Of one pass the rows are those of y."""
    rule = kernel.case.rule
    given, initial = values(kernel, seed)
    rows = "slots" if rule.passes == 2 else "dim_v"
    order = torch.randperm(SIZES[rows], generator=torch.Generator().manual_seed(seed))

    def permuted(x: Tensor, axis: int) -> Tensor:
        return x.index_select(axis, order)

    y, finals = kernel.attention(given, initial)
    found = kernel.attention(*(along(group, rule, rows, group, permuted) for group in (given, initial)))
    y = y if rule.passes == 2 else permuted(y, -1)
    assert_results(found, (y, along(finals, rule, rows, finals, permuted)))


@of("linear", "gla", "gsa", "gated_deltanet", "yaad")
@examples(3)
@drawn(seed=seeds)
def test_no_decay_and_no_write_move_nothing(kernel: Kernel, seed: int) -> None:
    given, initial = values(kernel, seed)
    given["log_decay"] = torch.zeros_like(given["log_decay"])
    _, finals = kernel.attention(still(kernel, given, TOKENS), initial)
    assert all(torch.equal(x, initial[name]) for name, x in finals.items())


@of("linear", "gla", "gsa", "gated_deltanet", "yaad")
@examples(4)
@drawn(seed=seeds, tokens=st.integers(2, 20))
def test_gates_of_tokens_that_write_nothing_multiply(kernel: Kernel, seed: int, tokens: int) -> None:
    """The last tokens, one by one, are one token with the sum of their log decays."""
    given, initial = values(kernel, seed)
    given = still(kernel, given, tokens)
    joined = cut(kernel.case.rule, given, 0, TOKENS - tokens + 1)
    total = given["log_decay"][:, TOKENS - tokens :].sum(1, keepdim=True)
    joined["log_decay"] = torch.cat([given["log_decay"][:, : TOKENS - tokens], total], dim=1)
    _, finals = kernel.attention(given, initial)
    _, at_once = kernel.attention(joined, initial)
    for name, x in at_once.items():
        assert (finals[name] - x).norm() <= TOLERANCE * x.norm()


def still(kernel: Kernel, given: Named, tokens: int) -> Named:
    """The last tokens write nothing: they have no step, or, where a head has one for all, a Hebbian loss no target."""
    target = "target" if kernel.case.rule.passes == 2 else "v"
    name = "step_size" if kernel.case.rule.step_size == "token" else target
    kept = given[name].shape[1] - tokens
    return given | {name: torch.cat([given[name][:, :kept], torch.zeros_like(given[name][:, kept:])], dim=1)}


@of("linear", "gla", "gsa", "gated_deltanet", "titans", "infini")
@examples(3)
@drawn(seed=seeds, a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_values_and_states_superpose(kernel: Kernel, seed: int, a: float, b: float) -> None:
    """All but keys, and the sum that a normaliser divides by: a linear residual is linear in its values."""
    (given, initial), (others, others_initial) = values(kernel, seed), values(kernel, seed + 1)
    linear = [name for name in initial if name not in ("S_k", "n")]

    def results(change: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
        own = given | {"v": change(given["v"], others["v"])}
        first = initial | {name: change(initial[name], others_initial[name]) for name in linear}
        y, finals = kernel.attention(own, first)
        return [y, *(finals[name] for name in linear)]

    both = results(lambda x, other: a * x + b * other)
    for found, x, other in zip(both, results(lambda x, _: x), results(lambda _, other: other), strict=True):
        size = max(abs(a) * x.norm().item(), abs(b) * other.norm().item(), 1.0)
        assert (found - (a * x + b * other)).norm() <= TOLERANCE * size


@pytest.mark.parametrize(("name", "power"), [("linear", 1), ("gla", 1), ("gated_deltanet", 2), ("titans", 2)])
@examples(3)
@drawn(seed=seeds, scale=st.floats(0.5, 3))
def test_the_length_of_keys_is_part_of_the_step(name: str, power: int, scale: float, seed: int) -> None:
    """Hebbian: a step is divided by it; squared: by its square, and values are multiplied by it."""
    kernel = KERNELS[name]
    given, initial = values(kernel, seed)
    changed = {"k": given["k"] * scale, "step_size": given["step_size"] / scale**power}
    changed["v"] = given["v"] * scale ** (power - 1)
    assert_results(kernel.attention(given | changed, initial), kernel.attention(given, initial))


@examples(4)
@drawn(seed=seeds)
def test_equal_gates_of_channels_are_one_gate(seed: int) -> None:
    given, initial = values(KERNELS["linear"], seed)
    given["step_size"] = torch.ones_like(given["step_size"])
    wide = given["log_decay"][..., None].expand(*given["k"].shape)
    channels = given | {"log_decay": wide, "step_size": torch.ones(SIZES["heads"])}
    assert_results(KERNELS["gla"].attention(channels, initial), KERNELS["linear"].attention(given, initial))


@examples(2)
@drawn(seed=seeds, begin=st.integers(1, 3))
def test_the_gradient_of_pieces_is_that_of_the_whole(seed: int, begin: int) -> None:
    """Short pieces are walked token by token, the whole in tiles."""
    kernel = KERNELS["gated_deltanet"]
    found = []
    for cuts in ((0, TOKENS), (0, begin, TOKENS)):
        given, initial = leaves(*values(kernel, seed))
        parts, state = [], initial
        for first, last in itertools.pairwise(cuts):
            y, state = kernel.attention(cut(kernel.case.rule, given, first, last), state, own_schedule=True)
            parts.append(y)
        found.append(gradients(torch.cat(parts, dim=1), state, given, initial))
    for name, x in found[0].items():
        assert (found[1][name] - x).norm() <= 10 * TOLERANCE * x.norm(), name
