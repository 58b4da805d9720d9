"""The calls of one checkout, timed when they are asked for: what `checkouts` runs in a process of each.

It is run as text in the folder of a checkout and imports nothing of this project but `trellis_ops` by its public names,
with tensors by position, so that it runs on checkouts that differ in everything else. A line of JSON comes in, one goes
out: {"can_call": operator} says whether this checkout has the operator's public function, {"prepare": spec} sets a
spec's call up and runs it, {"sample": seconds} gives the seconds of a call.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

import trellis_ops

Spec = dict[str, Any]

FUNCTIONS = {
    "trellis_attention": "trellis_attention",
    "trellis_step": "trellis_step",
    "trellis_step_chunked": "trellis_step",
}
"""The operators that are timed here, each with the public function that runs it."""


def inputs(spec: Spec) -> list[torch.Tensor]:
    """q, k, v and target of norm 1, a forget gate near 0.95, a step size of 0.1, as `trellis_attention` has them."""
    generator = torch.Generator().manual_seed(0)
    rows, dtype = (spec["batch"], spec["tokens"], spec["heads"]), getattr(torch, spec["dtype"])
    q, k, v, target = (
        torch.nn.functional.normalize(torch.randn(*rows, width, generator=generator), dim=-1).to(dtype)
        for width in (spec["dim_k"], spec["dim_k"], spec["dim_v"], spec["slots"])
    )
    return [q, k, v, target, torch.full(rows, -0.05), torch.full(rows[2:], 0.1)]


def states(spec: Spec) -> tuple[torch.Tensor, torch.Tensor]:
    """Zero states of both memories."""
    shape = (spec["batch"], spec["heads"], spec["slots"])
    return torch.zeros(*shape, spec["dim_k"]), torch.zeros(*shape, spec["dim_v"])


def can_call(operator: str) -> bool:
    """Whether a call of the operator is written here, and this checkout has its function."""
    return operator in FUNCTIONS and hasattr(trellis_ops, FUNCTIONS[operator])


def call_of(spec: Spec) -> Callable[[], object]:
    """What is timed: a forward, a reverse pass alone, or a decode step.

    Raises:
        ValueError: an operator that has no call here.
    """
    if not can_call(spec["operator"]):
        raise ValueError(f"no call of {spec['operator']}: there are calls of {', '.join(FUNCTIONS)}")
    given, rule = inputs(spec), {name: spec[name] for name in ("phi", "phi_eps", "link", "out")}
    if spec["operator"] == "trellis_attention":
        rule["chunk_size"] = spec["chunk"]
        if spec["direction"] == "forward":
            return lambda: trellis_ops.trellis_attention(*given, **rule)
        leaves = [x.requires_grad_() for x in given]
        y, _ = trellis_ops.trellis_attention(*leaves, **rule)
        cotangent = torch.ones_like(y)
        return lambda: torch.autograd.grad(y, leaves, cotangent, retain_graph=True)
    *tokens, step_size = ([x[:, 0].contiguous() for x in given[:5]]) + given[5:]
    moved = states(spec)
    if spec["operator"] == "trellis_step_chunked":
        rule["gradient_state"] = states(spec)
    return lambda: trellis_ops.trellis_step(*tokens, step_size, moved, **rule)


def seconds_of(call: Callable[[], object], least: float) -> float:
    """Seconds of a call, of as many as take `least` seconds."""
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < least:
        call()
        count += 1
    return spent / count


def main() -> None:
    """Answer until there is nothing more to read."""
    call: Callable[[], object] = lambda: None  # noqa: E731
    for line in sys.stdin:
        asked = json.loads(line)
        answer: float | bool
        if "can_call" in asked:
            answer = can_call(asked["can_call"])
        elif "prepare" in asked:
            call = call_of(asked["prepare"])
            answer = seconds_of(call, 0.05)
        else:
            answer = seconds_of(call, asked["sample"])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
