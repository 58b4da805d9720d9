"""A compiled backward bound to inputs: the forward that keeps states, then the reverse pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from codegen.program import Program
from tuner.inputs import Inputs, sequences_of

_TOKENS = ("q", "k", "v", "alpha", "log_beta", "gamma")


def backward_first_values(program: Program, inputs: Inputs) -> dict[str, Tensor]:
    """What each output holds before a run: states and their cotangents their first value, everything else NaN.

    Gradients are those of `Program.backward`, gamma's `[tokens, H]`; `kept_k` and `kept_v` are between the two kernels.
    """
    chunks = sequences_of(inputs.lengths, program.segment_tokens, inputs["q"].device).chunks

    def poison(like: Tensor) -> Tensor:
        return torch.full_like(like, float("nan"))

    bars = {f"bar_{name}": poison(inputs[name if name != "gamma" else "log_beta"]) for name in _TOKENS}
    kept = {f"kept_{w}": inputs[f"S_{w}"].new_full((chunks, *inputs[f"S_{w}"].shape[1:]), float("nan")) for w in "kv"}
    states = {name: inputs[name].clone() for name in ("S_k", "S_v", "bar_S_k", "bar_S_v")}
    return {"y": poison(inputs["v"]), **states, **bars, **kept}


def backward_call(program: Program, inputs: Inputs, outputs: dict[str, Tensor]) -> Callable[[], None]:
    """Both kernels on `inputs`, writing to `outputs`."""
    sequences = sequences_of(inputs.lengths, program.segment_tokens, inputs["q"].device)
    tokens = tuple(inputs[name] for name in _TOKENS)
    states, kept = (outputs["S_k"], outputs["S_v"]), (outputs["kept_k"], outputs["kept_v"])
    bar_states = outputs["bar_S_k"], outputs["bar_S_v"]
    bar_tokens = tuple(outputs[f"bar_{name}"] for name in _TOKENS)
    q, k, v, alpha, log_beta, gamma = tokens

    def run() -> None:
        program.attention_kept(q, k, v, alpha, log_beta, gamma, *states, sequences, kept, outputs["y"])
        program.backward(tokens, kept, inputs["bar_y"], bar_states, sequences, bar_tokens)

    return run
