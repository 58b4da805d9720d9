"""Published rules by name, each with its equation and source; docs/rules.md has the general equation.

Symbols: S of one pass is `[D_v, D_k]`; beta is exp(log_decay), gamma step_size, D diag(beta) over columns.
"""

from __future__ import annotations

from dataclasses import dataclass

from codegen.errors import UnknownRuleError
from codegen.maps.expression import eps, input_row, total
from codegen.maps.functions import layer_norm, rsqrt
from codegen.maps.registry import unnamed
from codegen.rule import SOLVE, Rule
from codegen.rule_text import rule_of_text

_Z = input_row("z")

UNIT_ROW = unnamed("unit_row", _Z * rsqrt(total(_Z**2) + eps), checks=False)
"""A row divided by its norm (Lattice)."""

LAYER_NORM = unnamed("layer_norm", layer_norm(_Z), checks=False)
"""Layer normalisation without gain and bias (TTT-Linear's readout)."""


@dataclass(frozen=True)
class NamedRule:
    """A published rule.

    Attributes:
        name: as public functions take it.
        rule: its record.
        equation: what a token does, in one line.
        source: the paper's short name and arXiv id.
        note: what the record leaves to the caller, or cannot do; empty for nothing.
    """

    name: str
    rule: Rule
    equation: str
    source: str
    note: str = ""


def _one_pass(phi: str, decay: str = "scalar", step_size: str = "token", **more: object) -> Rule:
    return Rule(phi=phi, passes=1, link="identity", decay=decay, step_size=step_size, **more)  # type: ignore[arg-type]


_RULES = (
    NamedRule(
        "trellis",
        Rule(),
        "S = beta S - gamma u w^T, u = J_phi(z)^T (phi(z) - alpha), z = S_start w; y = S_v^T link(S_k q)",
        "TRELLIS, arXiv 2512.23852",
    ),
    NamedRule(
        "linear",
        _one_pass("hebbian"),
        "S = beta S + gamma v k^T; y = S q",
        "RetNet, arXiv 2307.08621; Mamba-2, arXiv 2405.21060",
        "RetNet: log_decay = log(1 - 2^(-5 - head)), step_size None. Mamba-2: log_decay = dt A, step_size = dt, k = B, "
        "v = x, q = C. The scale of q is the caller's.",
    ),
    NamedRule(
        "gla",
        _one_pass("hebbian", "channel", "head"),
        "S = S D + v k^T; y = S q",
        "Gated linear attention, arXiv 2312.06635",
        "The scale of q is the caller's.",
    ),
    NamedRule(
        "gsa",
        Rule(phi="hebbian", link="softmax", decay="slot"),
        "S_k = f o S_k + s k^T, S_v = f o S_v + s v^T; y = S_v^T softmax(S_k q)",
        "Gated slot attention, arXiv 2409.07146",
        "target = s = 1 - f and log_decay = log f, a number for each slot; the layer has log f = logsigmoid(x) / 8.",
    ),
    NamedRule(
        "abc",
        Rule(phi="hebbian", link="softmax", decay="slot"),
        "as gsa, with s = exp(s_t - lse_t) and f = exp(lse_(t-1) - lse_t), lse = logcumsumexp of the scores",
        "Attention with bounded-memory control, arXiv 2110.02488",
        "The log-sum-exp of the scores is carried by the preparation `abc_gates`, from piece to piece and for packed "
        "sequences; the model and its pools carry it.",
    ),
    NamedRule(
        "deltanet",
        _one_pass("identity", "none"),
        "S = S - gamma (S k - v) k^T; y = S q",
        "DeltaNet, arXiv 2406.06484",
        "k is given at unit length.",
    ),
    NamedRule(
        "gated_deltanet",
        _one_pass("identity", decay_first=True),
        "S = beta S - gamma (beta S k - v) k^T; y = S q",
        "Gated DeltaNet, arXiv 2412.06464",
        "k is given at unit length.",
    ),
    NamedRule(
        "delta_product",
        _one_pass("identity", decay_first=True),
        "one decay, n steps S = S - gamma (S k - v) k^T, one readout",
        "DeltaProduct, arXiv 2502.10297",
        "Time is stretched n-fold before the call: log_decay is 0 but at the first of n steps, y counts at the last.",
    ),
    NamedRule(
        "comba",
        _one_pass("identity", probe="own"),
        "S = beta S - gamma (S p - v) k^T; y = S q",
        "Comba, arXiv 2506.02475",
        "p = b k with the layer's b, and q - d k for q, are preparations.",
    ),
    NamedRule(
        "kda",
        _one_pass("identity", "channel", decay_first=True),
        "S = S D - gamma (S D k - v) k^T; y = S q",
        "Kimi delta attention, arXiv 2510.26692",
        "k is given at unit length.",
    ),
    NamedRule(
        "gdn2",
        _one_pass("identity", "channel", "head", decay_first=True, probe="own"),
        "S = S D - (S D (b o k) - w o v) k^T; y = S q",
        "Gated DeltaNet-2, arXiv 2605.22791",
        "probe = b o k and v = w o v are preparations; step_size None.",
    ),
    NamedRule(
        "rwkv7",
        _one_pass("hebbian", "channel", "head", erase=True),
        "S = S D + (S a) b^T + v k^T; y = S q",
        "RWKV-7, arXiv 2503.14456",
        "erase_a = -kk and erase_b = kk o eta, kk the key at unit length.",
    ),
    NamedRule(
        "oja",
        _one_pass("identity", "slot", decay_first=True, transposed=True),
        "S = f o S - gamma v (S^T v - k)^T, S^T v at the decayed memory; y = S q",
        "Gated Oja rule of flash-linear-attention, folder fla/ops/gated_oja_rule",
        "Its readout is S q, as in the reference, whose q and k are of unit length.",
    ),
    NamedRule(
        "ttt_linear",
        _one_pass("layer_norm_gain", "none", "reader_writer", out=LAYER_NORM),
        "S_t = S_0 - tau_t sum of gamma_i u_i k_i^T, loss 1/2 ||LN(S_0 k) g - (v - k)||^2; y = LN(S_t q)",
        "TTT-Linear, arXiv 2407.04620",
        "Preparations: v - k (less the bias of LN) for v, a 1 appended to q and k for the bias b, and "
        "y = q + g o LN(.) with the bias of LN after the call. Chunks of 16.",
    ),
    NamedRule(
        "titans",
        _one_pass("identity", momentum=True),
        "P = eta P - theta (S k - v) k^T, S = beta S + P, beta = 1 - alpha; y = S q",
        "Titans, arXiv 2501.00663",
        "The linear memory; a memory that is a network is outside of the family.",
    ),
    NamedRule(
        "yaad",
        _one_pass("huber"),
        "S = beta S - gamma u k^T, u = clip(S k - v, -1, 1); y = S q",
        "Yaad of Miras, arXiv 2504.13173",
        "The threshold of Huber's loss is 1 for every token; a loss with a gain takes one for each slot.",
    ),
    NamedRule(
        "moneta",
        _one_pass("smooth_l3"),
        "S = beta S - gamma u k^T, u = (S k - v) sqrt((S k - v)^2 + 1e-4); y = S q",
        "Moneta of Miras, arXiv 2504.13173",
        "p = 3, smooth at 0. The l_q retention (q = 4) is left out; a view that divides rows by their norm gives it.",
    ),
    NamedRule(
        "omeganet",
        _one_pass("identity", window=4),
        "S = beta S - gamma sum over the last c tokens of om_i u_i k_i^T, u_i = S k_i - v_i; y = S q",
        "OmegaNet of Atlas, arXiv 2505.23735",
        "c = 4; replace(rule, window=c) has another. Each u_i is computed once, at its own token. The polynomial "
        "feature map of k and q is a preparation.",
    ),
    NamedRule(
        "infini",
        _one_pass("identity", "none", "head", normaliser="both", read="chunk_start"),
        "S = S - (S k / (n k) - v) k^T, n = n + k; y = S q / (n q), read and regressed at the start of the chunk",
        "Infini-attention, arXiv 2404.07143",
        "The delta form; the linear one is replace(rule, phi='hebbian', normaliser='read'). k and q are given as "
        "elu(x) + 1. The gate that mixes y with local attention is the layer's.",
    ),
    NamedRule(
        "mesanet",
        Rule(phi="hebbian", link=SOLVE, step_size="token"),
        "S_k = beta S_k + gamma k k^T, S_v = beta S_v + gamma k v^T; y = S_v^T (S_k + diag(lambda))^-1 q",
        "MesaNet, arXiv 2506.05233",
        "target = k, so that there are D_k slots; the initial S_k is symmetric and positive.",
    ),
    NamedRule(
        "lattice",
        _one_pass("identity", "none", view=UNIT_ROW, view_gradient=True),
        "A_m = A_m - gamma u_m (k - s_m (s_m k)) / n_m, s_m = A_m / n_m, n_m = ||A_m||, u = S k - v; y = S q",
        "Lattice, encoding form, arXiv 2504.05646",
        "The decoding form, whose residual is on the side of D, is outside of the family. A row of zeros has no "
        "direction: give an initial S.",
    ),
    NamedRule(
        "memora",
        _one_pass("identity", view="softmax"),
        "A = beta A - gamma (S k - v) k^T, S = softmax of the rows of A; y = S q",
        "Memora of Miras, arXiv 2504.13173",
        "A row of S sums to 1, so that y is a mean of q's entries.",
    ),
    NamedRule(
        "in_place_ttt",
        _one_pass("hebbian", "none", read="chunk_start"),
        "S = S + gamma v k^T; y = S q, read at the start of the chunk",
        "In-Place TTT, arXiv 2604.06169",
        "The first S is a trained projection, given as initial_state; the target v is the layer's.",
    ),
)

NAMED: dict[str, NamedRule] = {each.name: each for each in _RULES}
"""Every named rule, by name."""


def rule_named(rule: str | Rule) -> Rule:
    """The record of a named rule, of a text as `rule_text` writes it, or the record itself.

    Raises:
        UnknownRuleError: it is neither a Rule nor a name in `NAMED` nor such a text.
        RuleError: it is a text of no rule.

    Example:
        >>> rule_named("titans").momentum
        True
    """
    if isinstance(rule, Rule):
        return rule
    if isinstance(rule, str) and rule.lstrip().startswith("{"):
        return rule_of_text(rule)
    if not isinstance(rule, str) or rule not in NAMED:
        raise UnknownRuleError(name=rule, known=", ".join(NAMED))
    return NAMED[rule].rule
