"""What published layers do around a rule: gates, feature maps and arrangements of tokens, none of them part of a rule.

No operator applies any of them, and none of them applies a scale. Gates are float32, or float64 for float64 inputs;
everything else has the type of its input. All are differentiable by autograd.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.errors import ShapeError, SizeError
from codegen.scalars import whole_number
from trellis_ops.calls import checks, values

UNIT_EPS = 1e-6
"""What `unit_rows` adds to the square of a length, as DeltaNet's published layers do."""

GSA_NORMALISER = 8.0
"""What GSA divides the logarithm of its forget gate by."""


def unit_rows(x: Tensor) -> Tensor:
    """x / sqrt(sum of x^2 + 1e-6) over the last axis: rows of unit length, and finite gradients at zero.

    Source: DeltaNet (arXiv 2406.06484, section 3.3), whose keys and queries have unit length.

    Args:
        x: `[..., D]`.

    Returns:
        `[..., D]`.
    """
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + UNIT_EPS)


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, a positive feature map: x + 1 above zero, exp(x) below.

    Source: linear attention (arXiv 2006.16236, equation 7); Infini-attention (arXiv 2404.07143) takes the same.

    Args:
        x: `[..., D]`.

    Returns:
        `[..., D]`.
    """
    # elu(x) + 1 itself would round exp(x) to a multiple of the spacing of floats at 1.
    return torch.where(x > 0, x + 1, torch.exp(x.clamp_max(0)))


def retention_log_decay(q: Tensor) -> Tensor:
    """RetNet's log forget gate, log(1 - 2^(-5 - h)) for head h, the same for all tokens.

    Source: RetNet (arXiv 2307.08621, equation 8).

    Args:
        q: `[B, T, H, D]`, whose sizes and device it has.

    Returns:
        log_decay `[B, T, H]`.
    """
    heads = torch.arange(q.shape[2], device=q.device, dtype=_gate_type(q))
    return torch.log1p(-torch.exp2(-5 - heads)).expand(q.shape[:3])


def mamba2_gates(dt: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Mamba-2's log forget gate dt A and step size dt; its B is k, its x is v, its C is q.

    Source: Mamba-2 (arXiv 2405.21060, section 7), with the discretisation of Mamba (arXiv 2312.00752, equation 4).

    Args:
        dt: `[B, T, H]`, positive: softplus of a projection.
        a: `[H]`, negative: -exp(A_log).

    Returns:
        log_decay and step_size, `[B, T, H]`.
    """
    step_size = dt.to(_gate_type(dt))
    return step_size * a.to(step_size.dtype), step_size


def gsa_gates(x: Tensor, normaliser: float = GSA_NORMALISER) -> tuple[Tensor, Tensor]:
    """GSA's log forget gate of each slot, log f = logsigmoid(x) / normaliser, and the strength of its write, 1 - f.

    Source: gated slot attention (arXiv 2409.07146, section 3.2).

    Args:
        x: `[B, T, H, M]`, a projection of the token.
        normaliser: divides the logarithm of the gate.

    Returns:
        log_decay and target, `[B, T, H, M]`.

    Raises:
        SizeError: `normaliser` is not positive.
    """
    if not normaliser > 0:
        raise SizeError(name="normaliser", value=normaliser, expected="a positive number")
    log_decay = F.logsigmoid(x.to(_gate_type(x))) / normaliser
    return log_decay, -torch.expm1(log_decay)


def abc_gates(
    s: Tensor, initial: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """ABC as gates of a rule: with lse_t = log(exp(lse_(t-1)) + exp(s_t)), it writes exp(s_t - lse_t) of a token.

    What is kept of a slot is exp(lse_(t-1) - lse_t), which is one minus what is written, so a slot holds a mean of keys
    and values with weights exp(s). A slot that nothing was written to yet is zero; its log decay is 0.

    Source: attention with bounded-memory control (arXiv 2110.02488, section 3.3), the normalisation carried along.

    Args:
        s: `[B, T, H, M]`, the logarithm of each slot's weight of a token, at most finite; -inf writes nothing.
        initial: `[B, H, M]`, lse after the tokens before these; None where there are none.
        cu_seqlens: `[N + 1]`, offsets of N sequences packed into B = 1, of which lse then has one each, `[N, H, M]`.

    Returns:
        The target exp(s_t - lse_t) and log_decay lse_(t-1) - lse_t, `[B, T, H, M]`, and the last lse `[B, H, M]`, to be
        given as `initial` with the tokens that follow.

    Raises:
        SequenceError, DtypeError, DeviceMismatchError: offsets that are none.
        ShapeError: `initial` of another number of sequences, heads or slots.
    """
    s = s.to(_gate_type(s))
    sequences = s.shape[0] if cu_seqlens is None else checks.offsets(cu_seqlens, s)
    first = _first_sums(s, initial, sequences)
    # Differences of -inf are NaN, so that nothing yet is a finite number below any other here.
    nothing = torch.finfo(s.dtype).min / 4
    if cu_seqlens is None:
        lse = _log_cumulative_sum(torch.cat([first.unsqueeze(1), s], dim=1).clamp_min(nothing))
        before, last = lse[:, :-1], lse[:, -1]
    else:
        values.check_offsets(cu_seqlens, s.shape[1], stall=False)
        before, last = _packed_sums(first, s, cu_seqlens.long(), nothing)
    empty = before <= nothing / 2
    # lse_(t-1) - lse_t, which is about -1 / t over a long sequence, would be lost in the rounding of lse.
    ahead = torch.where(empty, 0, s.clamp_min(nothing) - before)
    target = torch.where(empty, (s > nothing).to(s.dtype), torch.sigmoid(ahead))
    log_decay = torch.where(empty, 0, F.logsigmoid(-ahead))
    return target, log_decay, torch.where(last <= nothing / 2, -torch.inf, last)


def interleave(x: Tensor) -> Tensor:
    """The keys, values or step sizes of DeltaProduct's n substeps as tokens: n times as many.

    Source: DeltaProduct (arXiv 2502.10297, section 4): one forget gate and n delta steps for each token.

    Args:
        x: `[B, T, n, H, ...]`.

    Returns:
        `[B, T n, H, ...]`, to be given with `stretch_log_decay` and `stretch_queries` of the same n; `every_nth` takes
        the outputs. Offsets of packed sequences are multiplied by n.
    """
    return x.flatten(1, 2)


def stretch_log_decay(log_decay: Tensor, n: int) -> Tensor:
    """DeltaProduct's log forget gate for n substeps of each token: the token's at the first, then 0.

    Args:
        log_decay: `[B, T, ...]`.
        n: number of substeps.

    Returns:
        `[B, T n, ...]`.

    Raises:
        NumberTypeError, SizeError: n is no whole number of at least 1.
    """
    return _stretched(log_decay, n, place=0)


def stretch_queries(q: Tensor, n: int) -> Tensor:
    """DeltaProduct's queries for n substeps of each token: zero but at the last.

    Args:
        q: `[B, T, H, D_k]`.
        n: number of substeps.

    Returns:
        `[B, T n, H, D_k]`.

    Raises:
        NumberTypeError, SizeError: n is no whole number of at least 1.
    """
    return _stretched(q, n, place=-1)


def every_nth(y: Tensor, n: int) -> Tensor:
    """The outputs of DeltaProduct's tokens: those of the last of every n substeps.

    Args:
        y: `[B, T n, H, D_v]`.
        n: number of substeps.

    Returns:
        `[B, T, H, D_v]`.

    Raises:
        NumberTypeError, SizeError: n is no whole number of at least 1, or does not divide the number of tokens.
    """
    n = whole_number("n", n)
    if y.shape[1] % n:
        raise SizeError(name="the number of tokens of y", value=y.shape[1], expected=f"a multiple of n = {n}")
    return y[:, n - 1 :: n]


def append_one(x: Tensor) -> Tensor:
    """x with a 1 behind each row: given as keys and queries, the last column of a memory is a bias.

    Args:
        x: `[..., D]`.

    Returns:
        `[..., D + 1]`.
    """
    return torch.cat([x, x.new_ones(*x.shape[:-1], 1)], dim=-1)


def ttt_output(residual: Tensor, normalised: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """TTT-Linear's output, residual + LN(S q + b) * weight + bias.

    The inner loss has the same weight and bias: the rule's `gain` is weight, and its `v` is v - k - bias.

    Source: TTT (arXiv 2407.04620, section 2.7): f(x) = x + LN(f_res(x)).

    Args:
        residual: `[B, T, H, D]`, the queries.
        normalised: `[B, T, H, D]`, the output of the rule "ttt_linear", whose q and k went through `append_one`.
        weight, bias: `[H, D]`, of the layer norm.

    Returns:
        `[B, T, H, D]`.
    """
    return residual + normalised * weight + bias


def rwkv7_erase(kk: Tensor, eta: Tensor) -> tuple[Tensor, Tensor]:
    """RWKV-7's pair (a, b) = (-kk, kk * eta): S (a b^T) takes away, at rate eta, what the memory answers to kk.

    Source: RWKV-7 (arXiv 2503.14456, equation 1), where eta is called a and kk the removal key.

    Args:
        kk: `[B, T, H, D_k]`, of unit length.
        eta: `[B, T, H, D_k]`, or anything that broadcasts: the rate of each channel, from 0 to 1.

    Returns:
        erase_a and erase_b, `[B, T, H, D_k]`.
    """
    return -kk, kk * eta


def _gate_type(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _log_cumulative_sum(x: Tensor, begins: Tensor | None = None, nothing: float = 0.0) -> Tensor:
    """The logarithm of the sums of exp over axis 1; the gradient of torch.logcumsumexp is NaN at -inf, and inexact.

    With `begins [T]` a sum at t starts at place begins[t], and what lies before it counts as `nothing`.
    """
    reach, places = 1, torch.arange(x.shape[1], device=x.device)
    while reach < x.shape[1]:
        behind = x[:, :-reach]
        if begins is not None:
            inside = places[:-reach] >= begins[reach:]
            behind = torch.where(inside[:, None, None], behind, nothing)
        x = torch.cat([x[:, :reach], torch.logaddexp(x[:, reach:], behind)], dim=1)
        reach *= 2
    return x


def _first_sums(s: Tensor, initial: Tensor | None, sequences: int) -> Tensor:
    """lse before the first token of each sequence, `[N, H, M]`."""
    shape = (sequences, *s.shape[2:])
    if initial is None:
        return s.new_full(shape, -torch.inf)
    if initial.shape != shape:
        expected = f"{list(shape)}, one of each sequence, head and slot of s"
        raise ShapeError(name="initial", shape=list(initial.shape), expected=expected)
    return initial.to(s.dtype)


def _packed_sums(first: Tensor, s: Tensor, offsets: Tensor, nothing: float) -> tuple[Tensor, Tensor]:
    """lse before each token `[1, T, H, M]`, and after the last of each packed sequence `[N, H, M]`.

    Each sequence is laid behind its `first [N, H, M]`, in one row of T + N places.
    """
    sequences, total = first.shape[0], s.shape[1]
    numbers = torch.arange(sequences, device=s.device)
    of_token = numbers.repeat_interleave(offsets.diff(), output_size=total)
    starts = offsets[:-1] + numbers
    tokens = torch.arange(total, device=s.device) + of_token + 1
    begins = starts.new_empty(total + sequences).index_copy(0, starts, starts).index_copy(0, tokens, starts[of_token])
    row = s.new_empty(1, total + sequences, *s.shape[2:]).index_copy(1, starts, first.unsqueeze(0))
    lse = _log_cumulative_sum(row.index_copy(1, tokens, s).clamp_min(nothing), begins, nothing)
    return lse[:, tokens - 1], lse[0, offsets[1:] + numbers]


def _stretched(x: Tensor, n: int, place: int) -> Tensor:
    """x at one of n substeps of each token, and zeros at the others."""
    n = whole_number("n", n)
    shape = (*x.shape[:2], n, *x.shape[2:])
    substep = torch.zeros(n, dtype=torch.bool, device=x.device)
    substep[place] = True
    return torch.where(substep.view(1, 1, n, *[1] * (x.ndim - 2)), x.unsqueeze(2).expand(shape), 0).flatten(1, 2)
