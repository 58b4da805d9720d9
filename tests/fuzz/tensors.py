"""The tensors of a case."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from codegen.recurrence.tensors import states
from tests.fuzz.cases import INPUTS, STATES, Case
from tests.fuzz.layouts import LAYOUTS
from tests.fuzz.rules.drawn import is_of_rule
from tests.fuzz.rules.values import DTYPES, laid_out, values


@dataclass(frozen=True)
class Call:
    """Inputs as a user has them, in their layouts.

    Attributes:
        tensors: by the names of the equations; of the readouts also `read`, `chunk_states` and `codes`, of a step
            `G_k` and `G_v` where it is chunked. A step has no axis of tokens.
        incoming: cotangents by the name of the output, None where there is none.
        offsets: `[N + 1]` of packed sequences, else None.
    """

    tensors: dict[str, Tensor]
    incoming: dict[str, Tensor | None]
    offsets: Tensor | None


def make(case: Case) -> Call:
    """The inputs of `case`, the same every time."""
    generator = torch.Generator().manual_seed(case.seed)
    of_rule = is_of_rule(case.kernel.spec.problem)
    tensors = laid_out(case, values(case, generator)) if of_rule else _values(case, generator)
    for name, layout in zip((*INPUTS, *STATES), case.layouts, strict=True):
        if name in tensors and not of_rule:
            tensors[name] = LAYOUTS[layout](tensors[name])
    for name, like in (("read", "q"), ("chunk_states", "S_k"), ("codes", "target")):
        if name in tensors:
            tensors[name] = LAYOUTS[case.layouts[(*INPUTS, *STATES).index(like)]](tensors[name])
    if "G_k" in tensors:
        _alias(case.aliased, tensors)
    offsets = None
    if case.packed:
        kind = torch.int64 if case.seed % 2 else torch.int32
        offsets = torch.tensor([*itertools.accumulate(case.lengths, initial=0)], dtype=kind)
    return Call(tensors, _cotangents(case, generator), offsets)


def _values(case: Case, generator: torch.Generator) -> dict[str, Tensor]:
    problem, step_size = case.kernel.spec.problem, case.kernel.spec.rule.step_size
    step = problem.operator.startswith("trellis_step")
    shape = (1, sum(case.lengths)) if case.packed else (len(case.lengths), case.lengths[0])
    shape = (len(case.lengths), case.heads) if step else (*shape, case.heads)
    dtype, gate_type = DTYPES[problem.dtype], DTYPES[case.gate_type]
    of_q, of_w, of_target = case.scales

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    def one_of(values: tuple[float, ...], sizes: tuple[int, ...]) -> Tensor:
        chosen = torch.randint(len(values), sizes, generator=generator)
        return torch.tensor(values, dtype=torch.float32)[chosen].to(gate_type)

    made = {
        "q": (of_q * F.normalize(normal(*shape, problem.dim_k), dim=-1)).to(dtype),
        "k": (of_w * F.normalize(normal(*shape, problem.dim_k), dim=-1)).to(dtype),
        "v": (of_w * F.normalize(normal(*shape, problem.dim_v), dim=-1)).to(dtype),
        "target": (of_target * normal(*shape, problem.slots)).to(dtype),
        "log_decay": one_of(case.log_decays, shape),
        "step_size": one_of(case.step_sizes, shape[-1:] if step_size == "head" else shape),
    }
    memory = (len(case.lengths), case.heads, problem.slots)

    def random_states(scale: float, *first: int) -> tuple[Tensor, Tensor]:
        of_k, of_v = (normal(*first, dim) / math.sqrt(dim) for dim in (problem.dim_k, problem.dim_v))
        return scale * of_k, scale * of_v

    if case.state is not None:
        made["S_k"], made["S_v"] = random_states(case.state, *memory)
    if problem.operator == "trellis_step_chunked":
        made["G_k"], made["G_v"] = random_states(1.0, *memory)
    if problem.operator.startswith("memory_readout"):
        transposed = problem.operator.endswith("transposed")
        made["read"] = (normal(*shape, problem.slots).to(dtype) * of_q) if transposed else made["q"]
        chunks = -(-case.lengths[0] // problem.chunk)
        made["codes"] = of_target * normal(*shape, problem.slots)
        scale = 1.0 if case.state is None else case.state
        made["chunk_states"], _ = random_states(scale, shape[0], chunks, case.heads, problem.slots)
    return made


def _alias(aliased: str, tensors: dict[str, Tensor]) -> None:
    """Gradient states that are the states, which is the exact recurrence; what shares memory otherwise is refused."""
    if aliased == "both":
        tensors["G_k"], tensors["G_v"] = tensors["S_k"], tensors["S_v"]


def _cotangents(case: Case, generator: torch.Generator) -> dict[str, Tensor | None]:
    """Cotangents; for every other seed expanded from one row, as those of a sum are.

    Not from one number, which softmax and ln_silu have no gradient for but rounding.
    """
    problem = case.kernel.spec.problem
    operator, dtype = problem.operator, DTYPES[problem.dtype]
    tokens = (1, sum(case.lengths)) if case.packed else (len(case.lengths), case.lengths[0])
    tokens, memory = (*tokens, case.heads), (len(case.lengths), case.heads, problem.slots)

    def cotangent(*shape: int, kind: torch.dtype = torch.float32) -> Tensor:
        if case.seed % 2:
            return torch.randn(shape[-1], generator=generator).to(kind).expand(shape)
        return torch.randn(*shape, generator=generator).to(kind)

    of_y, of_states = case.cotangents != "states", case.cotangents != "y"
    if is_of_rule(problem):
        sizes = {name: getattr(problem, name) for name in ("dim_k", "dim_v", "slots")}
        sizes["window"] = case.kernel.spec.rule.window - 1
        found = {"y": cotangent(*tokens, problem.dim_v, kind=dtype) if of_y else None}
        for name, axes in states(case.kernel.spec.rule).items():
            shape = (*memory[:2], *(sizes[axis] for axis in axes))
            found[name] = cotangent(*shape) if of_states else None
        return found
    if operator == "trellis_attention":
        return {
            "y": cotangent(*tokens, problem.dim_v, kind=dtype) if of_y else None,
            "S_k": cotangent(*memory, problem.dim_k) if of_states else None,
            "S_v": cotangent(*memory, problem.dim_v) if of_states else None,
        }
    if operator == "memory_update":
        chunks = -(-case.lengths[0] // problem.chunk)
        return {
            "chunk_states": cotangent(tokens[0], chunks, case.heads, problem.slots, problem.dim_k) if of_y else None,
            "codes": cotangent(*tokens, problem.slots) if of_y else None,
            "S": cotangent(*memory, problem.dim_k) if of_states else None,
        }
    width = problem.slots if operator == "memory_readout" else problem.dim_k
    return {"y": cotangent(*tokens, width, kind=dtype)}
