"""The layers of the named rules, as their sources have them where that is stable, and that of any other rule."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from codegen.recurrence.tensors import HEAD
from codegen.rule import Rule
from codegen.rules import rule_named
from trellis_ops.lm.rules import preparations as made_by
from trellis_ops.lm.rules.inputs import RuleInputs
from trellis_ops.lm.rules.source import RANK, Source, as_is, logit, unit

_WITHOUT_Z = 64
"""Chunk of a rule whose writes do not depend on the memory: it changes nothing but the speed."""

_STALE = 16
"""Chunk of a rule that is trained with z at the start of a chunk; TTT-Linear's (arXiv 2407.04620, section 2.4)."""


def _draw_time_steps(bias: Tensor) -> None:
    """Time steps log-uniform in [0.001, 0.1] before softplus (Mamba-2, arXiv 2405.21060)."""
    drawn = torch.empty_like(bias).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    bias.copy_(drawn + (-torch.expm1(-drawn)).log())


def _draw_rates(log_rates: Tensor) -> None:
    """Rates uniform in [1, 16], as logarithms (Mamba-2, arXiv 2405.21060)."""
    log_rates.copy_(torch.empty_like(log_rates).uniform_(1.0, 16.0).log())


def _slower(by: float, axis: str, rank: int | None) -> Source:
    """log beta = logsigmoid(x) / by, for each of an axis."""
    return Source(lambda x: F.logsigmoid(x) / by, axes=(axis,), rank=rank)


_RATE = Source(torch.exp, _draw_rates, per=HEAD)
_SCALAR = {"dt": Source(F.softplus, _draw_time_steps), "rate": _RATE}
_CHANNEL = {"dt": Source(F.softplus, _draw_time_steps, ("dim_k",), rank=RANK), "rate": _RATE}
_BETA = Source(F.sigmoid)

_OF_ROWS_OF_SUM_ONE = "unit_centred"
"""Features for a view whose rows sum to 1: all of them answer the mean of a key's entries, whatever they hold.

Memora's source takes that off again by the layer norm of what is read (arXiv 2504.13173); RMSNorm does not.
"""

_NAMED: dict[str, RuleInputs] = {
    "linear": RuleInputs(_WITHOUT_Z, _SCALAR, made_by.mamba2, ("log_decay", "step_size")),
    "gla": RuleInputs(_WITHOUT_Z, {"log_decay": _slower(16.0, "dim_k", RANK)}),
    "gsa": RuleInputs(
        _WITHOUT_Z,
        {"scores": Source(as_is, axes=("slots",))},
        made_by.gsa,
        ("target", "log_decay"),
        features="silu",
    ),
    "abc": RuleInputs(
        _WITHOUT_Z,
        # No bias: the sum that divides takes it away.
        {"scores": Source(as_is, axes=("slots",), is_input=True)},
        made_by.abc,
        ("target", "log_decay"),
        features="silu",
        prepared={"lse": ("slots",)},
    ),
    "deltanet": RuleInputs(sources={"step_size": _BETA}),
    "gated_deltanet": RuleInputs(1, {**_SCALAR, "step_size": _BETA}, made_by.decayed, ("log_decay",)),
    "delta_product": RuleInputs(
        1,
        {
            **_SCALAR,
            "step_size": _BETA,
            "next_step_size": _BETA,
            "next_k": Source(unit, axes=("dim_k",), is_input=True),
            "next_v": Source(as_is, axes=("dim_v",), is_input=True),
        },
        made_by.delta_product,
        ("log_decay",),
        substeps=made_by.SUBSTEPS,
        finish=made_by.every_second,
    ),
    "comba": RuleInputs(
        1,
        {
            **_SCALAR,
            "step_size": _BETA,
            "probe_share": Source(F.sigmoid, logit(0.9), per=HEAD),
            "query_share": Source(as_is, per=HEAD),
        },
        made_by.comba,
        ("log_decay", "probe"),
    ),
    "kda": RuleInputs(1, {**_CHANNEL, "step_size": _BETA}, made_by.decayed, ("log_decay",)),
    "gdn2": RuleInputs(
        1,
        {
            **_CHANNEL,
            "erase_gate": Source(F.sigmoid, axes=("dim_k",), rank=RANK),
            "write_gate": Source(F.sigmoid, axes=("dim_v",), rank=RANK),
        },
        made_by.gdn2,
        ("log_decay", "probe", "step_size"),
    ),
    "rwkv7": RuleInputs(
        1,
        {
            "log_decay": Source(lambda x: -math.exp(-0.5) * F.sigmoid(x), -2.0, ("dim_k",), rank=RANK),
            "eta": Source(F.sigmoid, axes=("dim_k",), rank=RANK),
        },
        made_by.erased_and_written,
        ("erase_a", "erase_b"),
    ),
    "oja": RuleInputs(1, {"log_decay": _slower(16.0, "dim_v", RANK), "step_size": _BETA}),
    # Without the bias b beside S, which would be a column more of the memory.
    "ttt_linear": RuleInputs(
        _STALE,
        {"bias": Source(as_is, axes=("dim_v",), per=HEAD)},
        made_by.ttt_linear,
        first_state=True,
        finish=made_by.ttt_readout,
    ),
    "titans": RuleInputs(_STALE),
    "yaad": RuleInputs(_STALE),
    "moneta": RuleInputs(_STALE),
    "omeganet": RuleInputs(_STALE),
    # The sources of this and of in_place_ttt read the tokens of a chunk by attention, which is not here.
    "infini": RuleInputs(makes=("step_size",), features="positive"),
    "mesanet": RuleInputs(_WITHOUT_Z, {**_SCALAR, "step_size": _BETA}, made_by.decayed, ("log_decay",)),
    "lattice": RuleInputs(first_state=True),
    "memora": RuleInputs(features=_OF_ROWS_OF_SUM_ONE),
    "in_place_ttt": RuleInputs(first_state=True),
}


def rule_inputs(rule: str | Rule) -> RuleInputs:
    """The layer of a rule; one that is given by its record has that of any rule, whatever its name.

    Raises:
        UnknownRuleError, RuleError: a rule that there is not.
    """
    if isinstance(rule, str) and rule in _NAMED:
        return _NAMED[rule]
    record = rule_named(rule)
    chunk = _STALE if record.step_size == "reader_writer" else 1
    features = "positive" if record.normaliser != "none" else "unit"
    if record.view == "softmax":
        features = _OF_ROWS_OF_SUM_ONE
    first = record.view_gradient or record.phi == "layer_norm_gain"
    if not record.erase:
        return RuleInputs(chunk, features=features, first_state=first)
    sources = {"erase_key": Source(unit, axes=("dim_k",), is_input=True), "eta": Source(F.sigmoid)}
    return RuleInputs(chunk, sources, made_by.erased, ("erase_a", "erase_b"), features, first)


def forgets(rule: str | Rule) -> bool:
    """Whether what a memory holds fades, so that one state serves a text of any length.

    Without a decay it does not; nor with ABC's, which makes a mean of all tokens of a running sum of them.

    Raises:
        UnknownRuleError, RuleError: a rule that there is not.
    """
    return rule_named(rule).decay != "none" and not rule_inputs(rule).prepared
