"""A case as the project computes it: by the public operators."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tests.fuzz.cases import INPUTS, Case
from tests.fuzz.rules import calls
from tests.fuzz.rules.drawn import is_of_rule
from tests.fuzz.tensors import Call
from trellis_ops import memory_readout, memory_update, trellis_attention, trellis_step

Results = dict[str, Tensor]


def run(case: Case, call: Call) -> Results:
    """Outputs by name, and the wanted gradients as d and the name of the input; memory starts as NaN."""
    with _surroundings(case):
        return _results(case, call)


@contextlib.contextmanager
def _surroundings(case: Case) -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(case.kernel.threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
            yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


def _results(case: Case, call: Call) -> Results:
    t = dict(call.tensors)
    for name in case.wanted:
        t[name] = t[name].detach().requires_grad_()
    outputs = _operator(case, t, call.offsets)
    if not case.wanted:
        return outputs
    pairs = [
        (outputs[name], cotangent)
        for name, cotangent in call.incoming.items()
        if cotangent is not None and outputs[name].requires_grad
    ]
    gradients = (
        torch.autograd.grad(
            [output for output, _ in pairs],
            [t[name] for name in case.wanted],
            [cotangent for _, cotangent in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
        if pairs
        else [torch.zeros_like(t[name]) for name in case.wanted]
    )
    found = {name: output.detach() for name, output in outputs.items()}
    return found | {f"d{name}": gradient for name, gradient in zip(case.wanted, gradients, strict=True)}


def _operator(case: Case, t: dict[str, Tensor], offsets: Tensor | None) -> Results:
    rule, problem = case.kernel.spec.rule, case.kernel.spec.problem
    if is_of_rule(problem):
        return calls.outputs(case, t, offsets)
    maps: dict[str, Any] = {"phi": rule.phi, "link": rule.link, "out": rule.out, "phi_eps": rule.phi_eps}
    common = {"implementation": case.kernel.backend}
    if problem.operator == "trellis_attention":
        y, states = trellis_attention(
            *(t[name] for name in INPUTS),
            **maps,
            **common,
            chunk_size=problem.chunk,
            initial_state=(t["S_k"], t["S_v"]) if "S_k" in t else None,
            output_final_state=True,
            cu_seqlens=offsets,
            outer_gradient="first_order" if problem.direction == "backward_first_order" else "bilevel",
        )
        return {"y": y, "S_k": states[0], "S_v": states[1]}
    if problem.operator == "memory_update":
        options = {"phi": rule.phi, "phi_eps": rule.phi_eps, "chunk_size": problem.chunk, **common}
        tokens = (t["k"], t["target"], t["log_decay"], t["step_size"])
        chunk_states, codes, state = memory_update(*tokens, initial_state=t.get("S_k"), **options)
        return {"chunk_states": chunk_states, "codes": codes, "S": state}
    if problem.operator.startswith("memory_readout"):
        transpose = problem.operator.endswith("transposed")
        tensors = (t[name] for name in ("read", "k", "chunk_states", "codes", "log_decay", "step_size"))
        return {"y": memory_readout(*tensors, chunk_size=problem.chunk, transpose=transpose, **common)}
    gradient_state = (t["G_k"], t["G_v"]) if "G_k" in t else None
    y = trellis_step(
        *(t[name] for name in INPUTS), (t["S_k"], t["S_v"]), **maps, **common, gradient_state=gradient_state
    )
    return {"y": y, "S_k": t["S_k"], "S_v": t["S_v"]}
