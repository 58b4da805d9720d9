"""The preparations against plain loops over the equations they cite, in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from codegen.errors import NumberTypeError, SequenceError, ShapeError, SizeError
from codegen.rules import rule_named
from trellis_ops import preparations
from trellis_ops.eager import recurrence

B, T, H, D, M = 2, 7, 3, 5, 4


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def test_rows_have_unit_length_and_a_zero_row_has_finite_gradients():
    x = drawn(B, T, H, D)
    made = preparations.unit_rows(x)
    close(made.norm(dim=-1), torch.ones(B, T, H, dtype=x.dtype), 1e-4)
    for index in ((0, 0, 0), (1, 6, 2)):
        length = math.sqrt(sum(float(each) ** 2 for each in x[index]) + 1e-6)
        close(made[index], x[index] / length)
    zero = torch.zeros(1, D, requires_grad=True)
    preparations.unit_rows(zero).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


def test_elu_plus_one_is_the_exponential_below_zero():
    x = torch.tensor([-30.0, -2.0, 0.0, 3.0], requires_grad=True)
    made = preparations.elu_plus_one(x)
    expected = torch.tensor([math.exp(-30), math.exp(-2), 1.0, 4.0])
    torch.testing.assert_close(made, expected, rtol=1e-6, atol=0)
    made.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([math.exp(-30), math.exp(-2), 1.0, 1.0]), rtol=1e-6, atol=0)


def test_elu_plus_one_of_a_large_number_has_a_finite_gradient():
    x = torch.tensor([200.0], requires_grad=True)
    preparations.elu_plus_one(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0]


def test_the_log_decay_of_retention_is_that_of_each_head():
    made = preparations.retention_log_decay(drawn(B, T, H, D))
    assert made.shape == (B, T, H)
    for head in range(H):
        close(made[1, 3, head].exp(), torch.tensor(1 - 2.0 ** (-5 - head), dtype=made.dtype))
    assert preparations.retention_log_decay(torch.zeros(1, 1, 1, 1, dtype=torch.bfloat16)).dtype == torch.float32


def test_the_gates_of_mamba2():
    dt, a = drawn(B, T, H).exp(), -drawn(H, seed=1).exp()
    log_decay, step_size = preparations.mamba2_gates(dt, a)
    close(step_size, dt)
    for head in range(H):
        close(log_decay[0, 2, head], dt[0, 2, head] * a[head])


@pytest.mark.parametrize("normaliser", [8.0, 1.0])
def test_the_gates_of_gsa_add_up_to_one(normaliser: float):
    x = drawn(B, T, H, M)
    log_decay, target = preparations.gsa_gates(x, normaliser)
    expected = math.log(1 / (1 + math.exp(-float(x[1, 2, 0, 3])))) / normaliser
    close(log_decay[1, 2, 0, 3], torch.tensor(expected, dtype=x.dtype))
    close(log_decay.exp() + target, torch.ones_like(x))


def test_gsa_refuses_a_normaliser_that_is_not_positive():
    with pytest.raises(SizeError, match="normaliser"):
        preparations.gsa_gates(drawn(B, T, H, M), 0.0)


def abc_by_sums(s: Tensor, values: Tensor) -> Tensor:
    """Each slot's mean of the values so far with weights exp(s), `[B, T, H, M, D]`."""
    found = []
    for t in range(s.shape[1]):
        weights = s[:, : t + 1].exp()
        total = torch.einsum("bihm,bihd->bhmd", weights, values[:, : t + 1])
        found.append(total / weights.sum(1)[..., None])
    return torch.stack(found, dim=1)


def slots_by_gates(target: Tensor, log_decay: Tensor, values: Tensor, memory: Tensor) -> Tensor:
    found = []
    for t in range(values.shape[1]):
        memory = log_decay[:, t].exp()[..., None] * memory + target[:, t, ..., None] * values[:, t, :, None]
        found.append(memory)
    return torch.stack(found, dim=1)


def test_by_the_gates_of_abc_a_slot_is_a_mean_and_pieces_continue():
    s, values, zero = 3 * drawn(B, T, H, M), drawn(B, T, H, D, seed=1), torch.zeros(B, H, M, D, dtype=torch.float64)
    expected = abc_by_sums(s, values)
    target, log_decay, last = preparations.abc_gates(s)
    close(slots_by_gates(target, log_decay, values, zero), expected)
    close(last, s.exp().sum(1).log())
    memory, lse, parts = zero, None, []
    for begin, end in ((0, 3), (3, 3), (3, 4), (4, T)):
        target, log_decay, lse = preparations.abc_gates(s[:, begin:end], lse)
        if end > begin:
            parts.append(slots_by_gates(target, log_decay, values[:, begin:end], memory))
            memory = parts[-1][:, -1]
    close(torch.cat(parts, dim=1), expected)
    close(lse, last)


def test_a_piece_of_no_tokens_before_any_token_changes_nothing_of_abc():
    s = drawn(B, T, H, M)
    *_, empty = preparations.abc_gates(s[:, :0])
    for with_it, without in zip(preparations.abc_gates(s, empty), preparations.abc_gates(s), strict=True):
        close(with_it, without)


def test_packed_sequences_have_the_gates_of_abc_that_each_has_alone():
    offsets = [0, 3, 3, 4, 9, 9]
    s, initial = (3 * drawn(1, 9, H, M)).requires_grad_(), drawn(5, H, M, seed=1).requires_grad_()
    with torch.no_grad():
        s[0, 4, 0, 0] = initial[3, 1, 1] = initial[1, 0, 0] = -torch.inf
    for first in (initial, None):
        found = preparations.abc_gates(s, first, torch.tensor(offsets, dtype=torch.int32))
        alone = [
            preparations.abc_gates(s[:, begin:end], None if first is None else first[row : row + 1])
            for row, (begin, end) in enumerate(pairwise(offsets))
        ]
        parts = zip(*alone, strict=True)
        wanted = [torch.cat(part, dim=axis) for part, axis in zip(parts, (1, 1, 0), strict=True)]
        given = [s] if first is None else [s, first]
        weights = [drawn(*x.shape, seed=2 + place) for place, x in enumerate(wanted)]
        gradients = []
        for group in (found, wanted):
            for one, other in zip(group, wanted, strict=True):
                assert one.shape == other.shape and torch.equal(one.isinf(), other.isinf())
                close(one.where(one.isfinite(), 0), other.where(other.isfinite(), 0))
            finite = [(x.where(x.isfinite(), 0) * weight).sum() for x, weight in zip(group, weights, strict=True)]
            gradients.append(torch.autograd.grad(sum(finite), given))
        for one, other in zip(*gradients, strict=True):
            close(one, other)


def test_offsets_and_first_sums_that_do_not_fit_are_refused_by_the_gates_of_abc():
    with pytest.raises(SequenceError, match="does not end at T = 9"):
        preparations.abc_gates(drawn(1, 9, H, M), cu_seqlens=torch.tensor([0, 3, 8]))
    with pytest.raises(SequenceError, match="with a batch"):
        preparations.abc_gates(drawn(2, 9, H, M), cu_seqlens=torch.tensor([0, 9]))
    of_two, offsets = drawn(2, H, M), torch.tensor([0, 3, 5, 9])
    with pytest.raises(ShapeError, match=rf"initial has shape \[2, {H}, {M}\]; expected \[3, {H}, {M}\]"):
        preparations.abc_gates(drawn(1, 9, H, M), of_two, offsets)
    with pytest.raises(ShapeError, match=rf"initial has shape \[2, {H}, {M}\]; expected \[1, {H}, {M}\]"):
        preparations.abc_gates(drawn(1, 9, H, M), of_two)


def test_the_gates_of_abc_and_their_gradients_are_finite_for_any_weights():
    s = torch.tensor([-torch.inf, 300.0, -300.0, -torch.inf, 90.0]).view(1, 5, 1, 1).clone().requires_grad_()
    target, log_decay, last = preparations.abc_gates(s)
    assert target.flatten().tolist() == [0.0, 1.0, 0.0, 0.0, pytest.approx(math.exp(-210), abs=1e-30)]
    assert log_decay.flatten().tolist() == [0.0, 0.0, 0.0, 0.0, 0.0]
    (target.sum() + log_decay.sum() + last.sum()).backward()
    assert s.grad is not None and s.grad.isfinite().all()


def test_the_gradients_of_abc_are_those_of_the_sums():
    s, values = (3 * drawn(B, T, H, M)).requires_grad_(), drawn(B, T, H, D, seed=1)
    zero, weight = torch.zeros(B, H, M, D, dtype=s.dtype), drawn(B, T, H, M, D, seed=2)
    target, log_decay, _ = preparations.abc_gates(s)
    (found,) = torch.autograd.grad((weight * slots_by_gates(target, log_decay, values, zero)).sum(), s)
    (expected,) = torch.autograd.grad((weight * abc_by_sums(s, values)).sum(), s)
    close(found, expected)


def test_the_log_decay_of_abc_stays_accurate_over_many_tokens():
    s = torch.full((1, 4096, 1, 1), 5.0)
    _, log_decay, _ = preparations.abc_gates(s)
    exact = [math.log1p(-1 / (t + 1)) for t in range(1, 4096)]
    torch.testing.assert_close(log_decay.flatten()[1:], torch.tensor(exact), rtol=2e-5, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_stretched_time_is_one_decay_and_n_delta_steps(n: int):
    q, log_decay = drawn(B, T, H, D), -drawn(B, T, H, seed=1).exp()
    k, v = preparations.unit_rows(drawn(B, T, n, H, D, seed=2)), drawn(B, T, n, H, M, seed=3)
    step_size = drawn(B, T, n, H, seed=4).sigmoid()
    memory, expected = torch.zeros(B, H, M, D, dtype=q.dtype), []
    for t in range(T):
        memory = log_decay[:, t].exp()[..., None, None] * memory
        for j in range(n):
            error = torch.einsum("bhmd,bhd->bhm", memory, k[:, t, j]) - v[:, t, j]
            memory = memory - torch.einsum("bh,bhm,bhd->bhmd", step_size[:, t, j], error, k[:, t, j])
        expected.append(torch.einsum("bhmd,bhd->bhm", memory, q[:, t]))
    keys, values, steps = (preparations.interleave(x) for x in (k, v, step_size))
    queries, gates = preparations.stretch_queries(q, n), preparations.stretch_log_decay(log_decay, n)
    memory, found = torch.zeros(B, H, M, D, dtype=q.dtype), []
    for t in range(T * n):
        memory = gates[:, t].exp()[..., None, None] * memory
        error = torch.einsum("bhmd,bhd->bhm", memory, keys[:, t]) - values[:, t]
        memory = memory - torch.einsum("bh,bhm,bhd->bhmd", steps[:, t], error, keys[:, t])
        found.append(torch.einsum("bhmd,bhd->bhm", memory, queries[:, t]))
    outputs = torch.stack(found, dim=1)
    close(preparations.every_nth(outputs, n), torch.stack(expected, dim=1))
    assert outputs.count_nonzero() == B * T * H * M


def test_an_infinite_log_decay_can_be_stretched():
    made = preparations.stretch_log_decay(torch.full((1, 2, 1), -torch.inf), 2)
    assert made.flatten().tolist() == [-torch.inf, 0.0, -torch.inf, 0.0]


def test_what_is_no_number_of_substeps_is_refused_by_name():
    with pytest.raises(SizeError, match="n=0"):
        preparations.stretch_queries(drawn(B, T, H, D), 0)
    with pytest.raises(NumberTypeError, match=r"n=1\.5"):
        preparations.stretch_log_decay(drawn(B, T, H), 1.5)  # type: ignore[arg-type]
    with pytest.raises(SizeError, match="a multiple of n = 2"):
        preparations.every_nth(drawn(B, T, H, D), 2)


def test_a_memory_of_keys_with_a_one_has_a_bias():
    x, matrix, bias = drawn(T, D), drawn(M, D, seed=1), drawn(M, seed=2)
    close(preparations.append_one(x) @ torch.cat([matrix, bias[:, None]], dim=1).T, x @ matrix.T + bias)


def test_the_output_of_ttt_is_a_residual_and_a_layer_norm_with_a_bias_in_the_memory():
    rule = rule_named("ttt_linear")
    q, k, v = (drawn(1, 1, H, D, seed=seed) for seed in range(3))
    weight, bias, tau = drawn(H, D, seed=3), drawn(H, D, seed=4), drawn(1, 1, H, seed=5).sigmoid()
    start = drawn(1, H, D, D + 1, seed=6)
    queries, keys = preparations.append_one(q), preparations.append_one(k)
    given = {"q": queries, "k": keys, "v": v - k - bias, "gain": weight, "step_size": torch.ones_like(tau)}
    normalised, _ = recurrence.attention(rule, given | {"reader_step": tau}, {"S": start})
    found = preparations.ttt_output(q, normalised, weight, bias)
    for h in range(H):
        matrix, offset = (x.clone().requires_grad_() for x in (start[0, h, :, :D], start[0, h, :, D]))
        answer = normed(matrix @ k[0, 0, h] + offset) * weight[h] + bias[h]
        loss = (answer - (v - k)[0, 0, h]).square().sum() / 2
        by_matrix, by_offset = torch.autograd.grad(loss, (matrix, offset))
        read = (matrix - tau[0, 0, h] * by_matrix) @ q[0, 0, h] + offset - tau[0, 0, h] * by_offset
        close(found[0, 0, h], (q[0, 0, h] + normed(read) * weight[h] + bias[h]).detach())


def normed(row: Tensor) -> Tensor:
    mean = row.sum() / D
    return (row - mean) / torch.sqrt((row - mean).square().sum() / D + 1e-6)


def test_the_pair_of_rwkv7_takes_away_what_the_memory_answers():
    kk = drawn(B, T, H, D)
    kk, memory = kk / kk.norm(dim=-1, keepdim=True), drawn(M, D, seed=1)
    a, b = preparations.rwkv7_erase(kk, torch.ones(B, T, H, 1, dtype=kk.dtype))
    left = memory + torch.outer(memory @ a[0, 0, 0], b[0, 0, 0])
    close(left @ kk[0, 0, 0], torch.zeros(M, dtype=kk.dtype))
    _, b = preparations.rwkv7_erase(kk, drawn(B, T, H, D, seed=2).sigmoid())
    close(b, kk * drawn(B, T, H, D, seed=2).sigmoid())
