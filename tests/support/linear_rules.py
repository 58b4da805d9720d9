"""Calls of rules that are linear in their state: what their kernels are given, and the walk that they are judged by."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from codegen.kernels.sequences import Sequences
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rule import Rule
from codegen.spec import Problem, Spec
from trellis_ops.dispatch.launch import even_sequences, packed_sequences

LINEAR = Rule("hebbian", passes=1, step_size="token")
RULES = {
    "linear": LINEAR,
    "fixed": replace(LINEAR, decay="none", step_size="head"),
    "gla": replace(LINEAR, decay="channel"),
    "deltanet": replace(LINEAR, phi="identity", decay="none"),
    "gated_deltanet": replace(LINEAR, phi="identity", decay_first=True),
    "comba": replace(LINEAR, phi="identity", probe="own"),
    "kda": replace(LINEAR, phi="identity", decay="channel", decay_first=True, step_size="head"),
    "rwkv7": replace(LINEAR, decay="channel", erase=True, step_size="head"),
    "erase_post": replace(LINEAR, decay_first=True, erase=True, read="before"),
    "gsa": Rule("hebbian", link="softmax", decay="slot"),
    "gsa_before": Rule("hebbian", link="softmax", out="ln_silu", decay="slot", step_size="token", read="before"),
    "linked": Rule("hebbian", link="ln_silu"),
    "in_place": replace(LINEAR, read="chunk_start", out="ln_silu"),
    "channel_pre": replace(LINEAR, phi="identity", decay="channel", probe="own", read="before", out="ln_silu"),
}


@dataclass(frozen=True)
class Sizes:
    """Of a call."""

    batch: int = 2
    tokens: int = 2 * 16 + 5
    heads: int = 3
    dim_k: int = 24
    dim_v: int = 20
    slots: int = 5


Named = dict[str, torch.Tensor]


def inputs(rule: Rule, sizes: Sizes, dtype: torch.dtype = torch.float32, sequences: int = 2) -> tuple[Named, Named]:
    """The tensors of a call and its initial states."""
    torch.manual_seed(0)
    length = {"dim_k": sizes.dim_k, "dim_v": sizes.dim_v, "slots": sizes.slots}
    length |= {} if rule.passes == 2 else {"slots": sizes.dim_v}
    given = {}
    for each in tensors(rule):
        leading = (sizes.heads,) if each.per == HEAD else (sizes.batch, sizes.tokens, sizes.heads)
        x = torch.randn(*leading, *(length[axis] for axis in each.axes))
        if each.name in ("k", "probe"):
            x = torch.nn.functional.normalize(x, dim=-1)
        elif each.name == "log_decay":
            x = torch.nn.functional.logsigmoid(x)
        elif each.name in ("step_size", "target"):
            x = x.sigmoid()
        elif each.name in ("erase_a", "erase_b"):
            x = (1 if each.name == "erase_b" else -1) * torch.nn.functional.normalize(x.abs(), dim=-1)
        given[each.name] = x.to(dtype if each.is_input else torch.float32)
    first = {
        name: torch.randn(sequences, sizes.heads, *(length[axis] for axis in axes))
        for name, axes in states(rule).items()
    }
    return given, first


def spec_of(rule: Rule, given: Named, chunk: int = 1, direction: str = "forward") -> Spec:
    """The spec of a call."""
    q, v = given["q"], given["v"]
    batch, tokens, heads = q.shape[:3]
    sizes = {"dim_k": q.shape[-1], "dim_v": v.shape[-1], "slots": given.get("target", v).shape[-1], "chunk": chunk}
    dtype = str(q.dtype).removeprefix("torch.")
    return Spec(rule, Problem("memory_attention", batch, tokens, heads, **sizes, dtype=dtype, direction=direction))


def sequences_of(given: Named, offsets: torch.Tensor | None, chunk: int = 1) -> Sequences:
    """A batch, or packed sequences."""
    batch, tokens = given["q"].shape[:2]
    if offsets is None:
        return even_sequences(batch, tokens, chunk, given["q"].device)
    return packed_sequences(offsets.int(), tokens, chunk)


def per_head(rule: Rule) -> set[str]:
    """The tensors that each head has."""
    return {each.name for each in tensors(rule) if each.per == HEAD}


def flat(rule: Rule, given: Named) -> Named:
    """The tensors as kernels take them."""
    return {name: x.clone() if name in per_head(rule) else x.flatten(0, 1).contiguous() for name, x in given.items()}
