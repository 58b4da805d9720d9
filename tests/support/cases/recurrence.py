"""Compiled kernels of any rule against the eager walk in float64 and its autograd."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from codegen.kernels.buffers import length
from codegen.kernels.operator import CompiledOperator
from codegen.kernels.sequences import Sequences
from codegen.kernels.signatures import dtype_of, operator_arguments
from codegen.limits.extent import Extent
from codegen.recurrence.of_rule import used_chunk_states
from codegen.recurrence.tensors import HEAD, state_behind, tensors
from codegen.spec import Problem, Spec
from tests.trellis_ops.family.cases import Case, Named, inputs
from trellis_ops.dispatch.launch import even_sequences, packed_sequences
from trellis_ops.eager import recurrence

Build = Callable[[Spec], CompiledOperator]
Compared = dict[str, tuple[Tensor, Tensor]]

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
HERE = torch.device("cpu")


@dataclass(frozen=True)
class Run:
    """A case as a kernel takes it.

    Attributes:
        case: rule, sizes and chunk.
        direction: of `codegen.spec.DIRECTIONS`.
        dtype: of q.
        packed: offsets of sequences in B = 1; None for a batch.
    """

    case: Case
    direction: str = "forward"
    dtype: str = "float32"
    packed: tuple[int, ...] | None = None

    def spec(self, operator: str = "memory_attention") -> Spec:
        case = self.case
        slots = case.sizes["slots"] if case.rule.passes == 2 else case.dim_v
        return Spec(
            case.rule,
            Problem(
                operator=operator,
                batch=case.batch,
                tokens=case.tokens,
                heads=case.heads,
                dim_k=case.dim_k,
                dim_v=case.dim_v,
                slots=slots,
                chunk=case.chunk if operator == "memory_attention" else 1,
                dtype=self.dtype,
                direction=self.direction if operator == "memory_attention" else "forward",
            ),
        )

    def inputs(self) -> tuple[Named, Named]:
        """In float64, rounded as the kernel is given them."""
        given, initial = inputs(self.case, sequences=None if self.packed is None else len(self.packed) - 1)
        own = {each.name for each in tensors(self.case.rule) if each.is_input}
        rounded = {
            name: x.to(getattr(torch, self.dtype) if name in own else torch.float32) for name, x in given.items()
        }
        return tuple({name: x.float().double() for name, x in each.items()} for each in (rounded, initial))


class Strong(Run):
    """Gates of every strength, of which some forget all."""

    def inputs(self) -> tuple[Named, Named]:
        given, initial = super().inputs()
        choice = torch.randint(0, 4, given["log_decay"].shape, generator=torch.Generator().manual_seed(0))
        given["log_decay"] = torch.tensor([-1e-3, -5.0, -80.0, -torch.inf], dtype=torch.float64)[choice]
        return given, initial


def check_attention(build: Build, run: Run) -> None:
    """Outputs and final states, and of a direction with a backward all gradients."""
    given, initial = run.inputs()
    operator = build(run.spec())
    sequences = _sequences(run, operator)
    buffers = _poisoned(operator, run, sequences, given | initial)
    operator.forward(buffers, sequences)
    leaves = {name: x.clone().requires_grad_() for name, x in (given | initial).items()}
    y, finals = recurrence.attention(
        run.case.rule,
        {name: leaves[name] for name in given},
        {name: leaves[name] for name in initial},
        chunk_size=run.case.chunk,
        cu_seqlens=None if run.packed is None else torch.tensor(run.packed),
        outer_gradient="first_order" if run.direction == "backward_first_order" else "bilevel",
    )
    wanted = {"y": y} | finals
    _compare({name: (buffers[name], x) for name, x in wanted.items()}, TOLERANCE[run.dtype])
    if run.direction != "forward":
        _check_gradients(operator, run, sequences, buffers, leaves, wanted)


def check_step(build: Build, run: Run, chunked: bool) -> None:
    """One token of each sequence, the states in place; `chunked` with states of the start of a chunk."""
    given, initial = run.inputs()
    rule = run.case.rule
    operator = build(run.spec("memory_step_chunked" if chunked else "memory_step"))
    other = replace(run, case=replace(run.case, seed=run.case.seed + 1)).inputs()[1]
    starts = {
        # The sum of the writes since the start of the chunk has the shape of the memory.
        name: other[state_behind(name) or name.replace("A", "S")].clone()
        for name in used_chunk_states(rule, chunked)
    }
    sequences = even_sequences(run.case.batch, 1, 1, HERE)
    buffers = _poisoned(operator, run, sequences, given | initial | starts)
    operator.forward(buffers, sequences)
    per_head = {each.name for each in tensors(rule) if each.per == HEAD}
    token = {name: x if name in per_head else x[:, 0] for name, x in given.items()}
    y = recurrence.step(rule, token, initial, starts if chunked else None)
    _compare({name: (buffers[name], x) for name, x in ({"y": y} | initial | starts).items()}, TOLERANCE[run.dtype])


def _check_gradients(
    operator: CompiledOperator, run: Run, sequences: Sequences, buffers: Named, leaves: Named, wanted: Named
) -> None:
    draw = torch.Generator().manual_seed(1)
    cotangents = {}
    for name, x in wanted.items():
        buffers[f"d{name}"].copy_(torch.randn(x.shape, generator=draw).reshape(buffers[f"d{name}"].shape))
        cotangents[name] = buffers[f"d{name}"].double().reshape(x.shape)
    operator.backward(buffers, sequences)
    found = torch.autograd.grad(
        list(wanted.values()),
        list(leaves.values()),
        [cotangents[name] for name in wanted],
        allow_unused=True,
        materialize_grads=True,
    )
    per_head = {each.name for each in tensors(run.case.rule) if each.per == HEAD}
    compared = {}
    for name, want in zip(leaves, found, strict=True):
        got = buffers[f"d{name}"]
        compared[f"d{name}"] = (got.sum(0) if name in per_head else got, want)
    _compare(compared, 10 * TOLERANCE[run.dtype])


def _compare(pairs: Compared, tolerance: float) -> None:
    errors = {}
    for name, (got, want) in pairs.items():
        difference, size = (got.double() - want.reshape(got.shape)).norm().item(), want.norm().item()
        errors[name] = difference / size if size else difference
    assert max(errors.values(), key=lambda x: math.inf if math.isnan(x) else x) <= tolerance, errors


def _sequences(run: Run, operator: CompiledOperator) -> Sequences:
    if run.packed is None:
        return even_sequences(run.case.batch, run.case.tokens, operator.chunk_tokens, HERE)
    return packed_sequences(torch.tensor(run.packed), run.packed[-1], operator.chunk_tokens)


def _poisoned(operator: CompiledOperator, run: Run, sequences: Sequences, given: Named) -> Named:
    """The operator's tensors: those that are given, and NaN in all others."""
    spec, heads = operator.spec, run.case.heads
    tokens = run.case.batch * run.case.tokens if spec.problem.operator == "memory_attention" else run.case.batch
    extent = Extent(tokens, heads, sequences.count, sequences.chunks, sequences.most_chunks)
    buffers = {}
    for argument in operator_arguments(spec):
        shape = [length(axis, spec, operator.schedule, extent) for axis in argument.axes]
        dtype = getattr(torch, dtype_of(argument, spec, operator.schedule))
        buffers[argument.name] = torch.full(shape, math.nan, dtype=dtype)
        if argument.name in given:
            buffers[argument.name].copy_(given[argument.name].reshape(shape))
    return buffers
