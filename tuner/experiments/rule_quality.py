"""The probe of recall for any rule: pairs are written, then queried, by the tensors that its record takes.

No gate forgets. A token that writes a pair has the key as k and as probe, and erases along it (RWKV-7); one that
queries writes nothing: its step size, momentum, k and v are zero. A normaliser is given positive keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from codegen.recurrence.tensors import HEAD, Given, tensors
from codegen.rule import SOLVE, Rule
from trellis_ops.eager import recurrence as eager

MOMENTUM = 0.5
"""eta of the tokens that write."""


def read_back(rule: Rule, keys: Tensor, values: Tensor, codes: Tensor, step_size: float, chunk: int) -> Tensor:
    """What a memory of `rule` gives for each key after all pairs were written, `[B, pairs, H, D_v]`.

    Args:
        rule: any.
        keys, values: `[B, pairs, H, D]`.
        codes: `[B, pairs, H, M]`, the targets of two passes.
        step_size: of the tokens that write.
        chunk: C.
    """
    keys = keys.abs() if rule.normaliser != "none" else keys
    ones = torch.ones(keys.shape[:3])
    written = {
        "k": keys,
        "v": values,
        "target": keys if rule.link == SOLVE else codes,
        "probe": values if rule.transposed else keys,
        "erase_a": -keys,
        "erase_b": step_size * keys,
        "step_size": step_size * ones,
        "momentum": MOMENTUM * ones,
        "window_weight": ones,
    }
    given = {"q": torch.cat([torch.zeros_like(keys), keys], dim=1)}
    for each in tensors(rule):
        if each.name in written:
            first = written[each.name]
            given[each.name] = torch.cat([first, torch.zeros_like(first)], dim=1)
        elif each.name != "q":
            given[each.name] = _unchanging(each, keys, values, codes)
    y, _ = eager.attention(rule, given, chunk_size=chunk)
    return y[:, keys.shape[1] :]


def _unchanging(each: Given, keys: Tensor, values: Tensor, codes: Tensor) -> Tensor:
    """Gates that keep everything; ones for what each head has, and for the reader's step."""
    sizes = {"dim_k": keys.shape[-1], "dim_v": values.shape[-1], "slots": codes.shape[-1]}
    batch, pairs, heads = keys.shape[:3]
    axes = [sizes[axis] for axis in each.axes]
    shape = [heads, *axes] if each.per == HEAD else [batch, 2 * pairs, heads, *axes]
    return torch.zeros(shape) if each.name == "log_decay" else torch.ones(shape)
