"""Named rules beside their published recurrences, written out by hand for one head and one sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from codegen.rule import Rule
from codegen.rules import NAMED
from tests.trellis_ops.family.cases import Case, Named, inputs
from tests.trellis_ops.family.runs import Attention, assert_same, every_form

Tokens = Iterator[dict[str, Tensor]]
TOKENS, CHUNK = 9, 3


def linear(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        s = x["beta"] * s + x["step_size"] * torch.outer(x["v"], x["k"])
        yield s @ x["q"]


def gla(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        s = s @ torch.diag(x["beta"]) + x["step_size"] * torch.outer(x["v"], x["k"])
        yield s @ x["q"]


def deltanet(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        s = s - x["step_size"] * torch.outer(s @ x["k"] - x["v"], x["k"])
        yield s @ x["q"]


def gated_deltanet(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        keep = torch.eye(len(x["k"])) - x["step_size"] * torch.outer(x["k"], x["k"])
        s = x["beta"] * s @ keep + x["step_size"] * torch.outer(x["v"], x["k"])
        yield s @ x["q"]


def kda(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        keep = torch.eye(len(x["k"])) - x["step_size"] * torch.outer(x["k"], x["k"])
        s = s @ torch.diag(x["beta"]) @ keep + x["step_size"] * torch.outer(x["v"], x["k"])
        yield s @ x["q"]


def gdn2(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        keep = torch.eye(len(x["k"])) - x["step_size"] * torch.outer(x["probe"], x["k"])
        s = s @ torch.diag(x["beta"]) @ keep + x["step_size"] * torch.outer(x["v"], x["k"])
        yield s @ x["q"]


def comba(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        keep = x["beta"] * torch.eye(len(x["k"])) - x["step_size"] * torch.outer(x["probe"], x["k"])
        s = s @ keep + x["step_size"] * torch.outer(x["v"], x["k"])
        yield s @ x["q"]


def rwkv7(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        move = torch.diag(x["beta"]) + torch.outer(x["erase_a"], x["erase_b"])
        s = s @ move + x["step_size"] * torch.outer(x["v"], x["k"])
        yield s @ x["q"]


def oja(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        s = x["beta"][:, None] * s
        s = s + x["step_size"] * torch.outer(x["v"], x["k"] - x["v"] @ s)
        yield s @ x["q"]


def ttt_linear(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for t, x in enumerate(tokens):
        if t % CHUNK == 0:
            start, writes = s, torch.zeros_like(s)
        z = (start @ x["k"]).requires_grad_()
        normed = torch.nn.functional.layer_norm(z, z.shape, weight=x["gain"], eps=1e-6)
        (u,) = torch.autograd.grad(0.5 * ((normed - x["v"]) ** 2).sum(), z)
        writes = writes + x["step_size"] * torch.outer(u, x["k"])
        s = start - x["reader_step"] * writes
        yield torch.nn.functional.layer_norm(s @ x["q"], z.shape, eps=1e-6)


def titans(tokens: Tokens, s: Tensor, p: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        p = x["momentum"] * p - x["step_size"] * torch.outer(s @ x["k"] - x["v"], x["k"])
        s = x["beta"] * s + p
        yield s @ x["q"]


def yaad(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        error = s @ x["k"] - x["v"]
        s = x["beta"] * s - x["step_size"] * torch.outer(error.clamp(-1, 1), x["k"])
        yield s @ x["q"]


def moneta(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        error = s @ x["k"] - x["v"]
        s = x["beta"] * s - x["step_size"] * torch.outer(error * (error**2 + 1e-4).sqrt(), x["k"])
        yield s @ x["q"]


def omeganet(tokens: Tokens, s: Tensor, us: Tensor, ws: Tensor) -> Iterator[Tensor]:
    writes = [torch.outer(u, w) for u, w in zip(us, ws, strict=True)]
    for x in tokens:
        writes.append(x["window_weight"] * torch.outer(s @ x["k"] - x["v"], x["k"]))
        s = x["beta"] * s - x["step_size"] * sum(writes[-4:])
        yield s @ x["q"]


def infini(tokens: Tokens, s: Tensor, n: Tensor) -> Iterator[Tensor]:
    for t, x in enumerate(tokens):
        if t % CHUNK == 0:
            start, start_n = s, n
        recalled = start @ x["k"] / (start_n @ x["k"] + 1e-6)
        s = s + x["step_size"] * torch.outer(x["v"] - recalled, x["k"])
        n = n + x["step_size"] * x["k"]
        yield start @ x["q"] / (start_n @ x["q"] + 1e-6)


def mesanet(tokens: Tokens, s_k: Tensor, s_v: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        s_k = x["beta"] * s_k + x["step_size"] * torch.outer(x["k"], x["k"])
        s_v = x["beta"] * s_v + x["step_size"] * torch.outer(x["k"], x["v"])
        yield s_v.T @ torch.linalg.inv(s_k + torch.diag(x["regulariser"])) @ x["q"]


def gsa(tokens: Tokens, s_k: Tensor, s_v: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        s_k = torch.diag(x["beta"]) @ s_k + x["step_size"] * torch.outer(x["target"], x["k"])
        s_v = torch.diag(x["beta"]) @ s_v + x["step_size"] * torch.outer(x["target"], x["v"])
        yield torch.softmax(s_k @ x["q"], dim=-1) @ s_v


def lattice(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    """The published form, s_m <- (1 + gamma u_m z_m / n_m^2) s_m - gamma (u_m / n_m) w, with eps under the root."""
    for x in tokens:
        n = ((s**2).sum(1) + 1e-6).sqrt()
        z = s @ x["k"] / n
        u = z - x["v"]
        s = (1 + x["step_size"] * u * z / n**2)[:, None] * s - x["step_size"] * torch.outer(u / n, x["k"])
        yield s @ x["q"] / ((s**2).sum(1) + 1e-6).sqrt()


def memora(tokens: Tokens, a: Tensor) -> Iterator[Tensor]:
    for x in tokens:
        a = x["beta"] * a - x["step_size"] * torch.outer(torch.softmax(a, 1) @ x["k"] - x["v"], x["k"])
        yield torch.softmax(a, 1) @ x["q"]


def in_place_ttt(tokens: Tokens, s: Tensor) -> Iterator[Tensor]:
    for t, x in enumerate(tokens):
        if t % CHUNK == 0:
            start = s
        s = s + x["step_size"] * torch.outer(x["v"], x["k"])
        yield start @ x["q"]


PUBLISHED: dict[str, Callable[..., Iterator[Tensor]]] = {
    each.__name__: each
    for each in (
        *(linear, gla, deltanet, gated_deltanet, kda, gdn2, comba, rwkv7, oja, ttt_linear, titans, yaad, moneta),
        *(omeganet, infini, mesanet, gsa, lattice, memora, in_place_ttt),
    )
}
IN_CHUNKS = ("ttt_linear", "infini", "in_place_ttt")


def test_all_but_those_of_another_and_trellis_are_here() -> None:
    assert NAMED["abc"].rule == NAMED["gsa"].rule
    assert NAMED["delta_product"].rule == NAMED["gated_deltanet"].rule
    assert NAMED.keys() - PUBLISHED.keys() == {"trellis", "abc", "delta_product"}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@every_form
@pytest.mark.parametrize("name", PUBLISHED)
def test_published(attention: Attention, name: str) -> None:
    case = Case(NAMED[name].rule, CHUNK if name in IN_CHUNKS else 1, batch=1, tokens=TOKENS, heads=1)
    given, initial = inputs(case)
    y, _ = attention(case.rule, given, initial, chunk_size=case.chunk)
    expected = PUBLISHED[name](tokens_of(case.rule, given), *(x[0, 0] for x in initial.values()))
    assert_same(y[0, :, 0], torch.stack(list(expected)), "y")


def tokens_of(rule: Rule, given: Named) -> Tokens:
    per_head = {"gain", "regulariser"} | ({"step_size"} if rule.step_size == "head" else set())
    for t in range(TOKENS):
        x = {name: each[0] if name in per_head else each[0, t, 0] for name, each in given.items()}
        yield x | ({"beta": x["log_decay"].exp()} if "log_decay" in x else {})


@every_form
@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_a_hebbian_pass_is_attention_with_a_decayed_mask(attention: Attention, chunk: int) -> None:
    """y = (mask o Q K^T o exp(L_t - L_i) gamma_i) V + exp(L_t) S_0 q."""
    case = Case(replace(NAMED["linear"].rule, step_size="token"), tokens=11)
    x, initial = inputs(case)
    y, finals = attention(case.rule, x, initial, chunk_size=chunk)
    total = x["log_decay"].cumsum(1).transpose(1, 2)
    kept = (total[..., :, None] - total[..., None, :]).exp().tril()
    weights = torch.einsum("bthd,bihd->bhti", x["q"], x["k"]) * kept * x["step_size"].transpose(1, 2)[:, :, None]
    expected = torch.einsum("bhti,bihv->bthv", weights, x["v"])
    expected = expected + torch.einsum("bht,bhvd,bthd->bthv", total.exp(), initial["S"], x["q"])
    assert_same(y, expected, "y")
    last = (total[..., -1:] - total).exp() * x["step_size"].transpose(1, 2)
    writes = torch.einsum("bhi,bihv,bihd->bhvd", last, x["v"], x["k"])
    assert_same(finals["S"], total[..., -1, None, None].exp() * initial["S"] + writes, "S")


@every_form
def test_delta_product_is_a_gated_deltanet_in_stretched_time(attention: Attention) -> None:
    """Two delta steps a token, after one decay, read at the second."""
    case = Case(NAMED["delta_product"].rule, batch=1, heads=1, tokens=2 * TOKENS)
    given, initial = inputs(case)
    given["log_decay"][:, 1::2] = 0
    y, _ = attention(case.rule, given, initial)
    s, read = initial["S"][0, 0], []
    one = {name: x[0, :, 0] for name, x in given.items()}
    for t in range(0, 2 * TOKENS, 2):
        s = one["log_decay"][t].exp() * s
        for k, v, gamma in zip(one["k"][t : t + 2], one["v"][t : t + 2], one["step_size"][t : t + 2], strict=True):
            s = s - gamma * torch.outer(s @ k - v, k)
        read.append(s @ one["q"][t + 1])
    assert_same(y[0, 1::2, 0], torch.stack(read), "y")


@every_form
def test_abc_is_gsa_of_scores_under_a_running_softmax(attention: Attention) -> None:
    """Memories are means of keys and of values, weighted by the softmax over time of each slot's scores."""
    case = Case(NAMED["abc"].rule, batch=1, heads=1, tokens=TOKENS)
    given, _ = inputs(case)
    scores = 3 * given["target"]
    lse = scores.logcumsumexp(1)
    before = torch.cat([torch.full_like(lse[:, :1], float("-inf")), lse[:, :-1]], dim=1)
    prepared = {"target": (scores - lse).exp(), "log_decay": before - lse, "step_size": torch.ones(1)}
    y, _ = attention(case.rule, given | prepared)
    s, k, v, q = (x[0, :, 0] for x in (scores, given["k"], given["v"], given["q"]))
    for t in range(TOKENS):
        weights = torch.softmax(s[: t + 1], dim=0).T
        expected = torch.softmax(weights @ k[: t + 1] @ q[t], dim=-1) @ (weights @ v[: t + 1])
        assert_same(y[0, t, 0], expected, "y")
