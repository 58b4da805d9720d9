"""A case as the oracle computes it."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.fuzz.cases import INPUTS, Case
from tests.fuzz.rules import oracle
from tests.fuzz.rules.drawn import is_of_rule
from tests.fuzz.tensors import Call
from trellis_ops import reference


def expected(case: Case, call: Call, dtype: torch.dtype = torch.float64, noise: float = 0.0) -> dict[str, Tensor]:
    """What `running.run` should give.

    Args:
        case, call: what is called.
        dtype: of all arithmetic; float32 shows how much any computation of that precision may lose.
        noise: relative size of a perturbation of all inputs and cotangents, which shows the same.
    """
    t = {name: x.detach().to(dtype).contiguous().clone() for name, x in call.tensors.items()}
    if case.autocast:
        for name in ("q", "k", "v", "target", "read"):
            if name in t:
                t[name] = call.tensors[name].detach().bfloat16().to(dtype)
    incoming = {name: None if x is None else x.to(dtype) for name, x in call.incoming.items()}
    if noise:
        generator = torch.Generator().manual_seed(case.seed + 1)

        def perturbed(x: Tensor) -> Tensor:
            return x * (1.0 + noise * torch.randn(x.shape, generator=generator, dtype=dtype))

        t = {name: perturbed(x) for name, x in t.items()}
        # Equal rows of a cotangent cancel in exact sums alone.
        incoming = {name: None if x is None else perturbed(x) for name, x in incoming.items()}
    for name in case.wanted:
        t[name].requires_grad_()
    with torch.enable_grad():
        outputs = _outputs(case, t, call.offsets, dtype)
        gradients = _gradients(case, t, outputs, incoming) if case.wanted else {}
    return {name: output.detach() for name, output in outputs.items()} | gradients


def _gradients(
    case: Case, t: dict[str, Tensor], outputs: dict[str, Tensor], incoming: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    pairs = [
        (outputs[name], cotangent)
        for name, cotangent in incoming.items()
        if cotangent is not None and outputs[name].requires_grad
    ]
    if not pairs:
        return {f"d{name}": torch.zeros_like(t[name]) for name in case.wanted}
    found = torch.autograd.grad(
        [output for output, _ in pairs],
        [t[name] for name in case.wanted],
        [cotangent for _, cotangent in pairs],
        allow_unused=True,
        materialize_grads=True,
    )
    return {f"d{name}": gradient for name, gradient in zip(case.wanted, found, strict=True)}


def _outputs(case: Case, t: dict[str, Tensor], offsets: Tensor | None, dtype: torch.dtype) -> dict[str, Tensor]:
    spec = case.kernel.spec
    operator, chunk = spec.problem.operator, spec.problem.chunk
    if is_of_rule(spec.problem):
        return oracle.outputs(case, t, offsets, dtype)
    if operator == "trellis_attention":
        y, (s_k, s_v) = reference.attention(
            *(t[name] for name in INPUTS),
            rule=spec.rule,
            chunk_size=chunk,
            initial_state=(t["S_k"], t["S_v"]) if "S_k" in t else None,
            cu_seqlens=offsets,
            outer_gradient="first_order" if spec.problem.direction == "backward_first_order" else "bilevel",
            dtype=dtype,
        )
        return {"y": y, "S_k": s_k, "S_v": s_v}
    if operator == "memory_update":
        memory = (t["k"], t["target"], t["log_decay"], t["step_size"])
        options = {"rule": spec.rule, "chunk_size": chunk, "initial_state": t.get("S_k"), "dtype": dtype}
        chunk_states, codes, state = reference.update(*memory, **options)
        return {"chunk_states": chunk_states, "codes": codes, "S": state}
    if operator.startswith("memory_readout"):
        tensors = (t[name] for name in ("read", "k", "chunk_states", "codes", "log_decay", "step_size"))
        transpose = operator.endswith("transposed")
        return {"y": reference.readout(*tensors, chunk_size=chunk, transpose=transpose, dtype=dtype)}
    gradient_state = (t["G_k"], t["G_v"]) if "G_k" in t else None
    state = (t["S_k"], t["S_v"])
    y, (s_k, s_v) = reference.step(
        *(t[name] for name in INPUTS), state, rule=spec.rule, gradient_state=gradient_state, dtype=dtype
    )
    return {"y": y, "S_k": s_k, "S_v": s_v}
