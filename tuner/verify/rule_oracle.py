"""What a call of any rule should give: the oracle of the family on the inputs of the kernels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from codegen.kernels.pool.arguments import pooled
from codegen.recurrence.tensors import HEAD, chunk_states, states, tensors
from codegen.spec import Spec
from trellis_ops import family_reference as reference
from tuner.verify.inputs.trellis import Inputs

Named = dict[str, Tensor]


def forward(spec: Spec, inputs: Inputs) -> Named:
    """y and the final states of every sequence, by name."""
    return _attention(spec, inputs, _given(spec, inputs))


def gradients(spec: Spec, inputs: Inputs) -> Named:
    """Outputs, final states and the gradients of all inputs; of what each head has one from every sequence."""
    leaves = {name: x.double().requires_grad_() for name, x in _given(spec, inputs).items()}
    with torch.enable_grad():
        outputs = _attention(spec, inputs, leaves)
        incoming = [inputs[f"d{name}"].double() for name in outputs]
        found = torch.autograd.grad(
            list(outputs.values()), list(leaves.values()), incoming, allow_unused=True, materialize_grads=True
        )
    given = {name: output.detach() for name, output in outputs.items()}
    return given | {f"d{name}": gradient for name, gradient in zip(leaves, found, strict=True)}


def step(spec: Spec, inputs: Inputs) -> Named:
    """y, the states after the token, and of its chunk the sums of writes that it adds to."""
    rule = spec.rule
    given = {each.name: inputs[each.name] for each in tensors(rule)}
    chunked = {name: inputs[name] for name in chunk_states(rule) if name in inputs.tensors}
    y, moved, kept = reference.memory_step(rule, given, {name: inputs[name] for name in states(rule)}, chunked)
    return {"y": y} | moved | {name: kept[name] for name in chunked if name.startswith("A")}


def pool(spec: Spec, inputs: Inputs) -> Named:
    """y, and every slot of the pools after the tokens of all rows, one token after another."""
    pools = {name: inputs[name].double() for name in pooled(spec)}
    y = inputs["v"].new_zeros(inputs["v"].shape, dtype=torch.float64)
    offsets = itertools.pairwise(inputs.sequences.cu_seqlens.tolist())
    rows = zip(inputs["state_indices"].tolist(), inputs["positions"].tolist(), offsets, strict=True)
    for slot, position, (begin, end) in rows:
        for t in range(begin, end if slot >= 0 else begin):
            y[t] = _token(spec, inputs, pools, slot, position + t - begin, t)
    return {"y": y} | pools


def _token(spec: Spec, inputs: Inputs, pools: Named, slot: int, position: int, t: int) -> Tensor:
    """y of a token of one row, whose slot it moves."""
    per_head = {each.name for each in tensors(spec.rule) if each.per == HEAD}
    given = {each.name: inputs[each.name] for each in tensors(spec.rule)}
    given = {name: x if name in per_head else x[t, None] for name, x in given.items()}
    state = {name: inputs[f"first_{name}"] if position == 0 else pools[name][slot] for name in states(spec.rule)}
    # The start of a chunk is the state itself, which is overwritten first.
    state = {name: x[None].clone() for name, x in state.items()}
    kept = {name: pools[name][slot, None] for name in pools if name not in state}
    y, moved, starts = reference.memory_step(spec.rule, given, state, kept if position % spec.problem.chunk else None)
    for name, x in (moved | {name: starts[name] for name in kept}).items():
        pools[name][slot] = x[0]
    return y[0]


def _given(spec: Spec, inputs: Inputs) -> Named:
    """The tensors and initial states, of what each head has a copy for every sequence."""
    count = len(inputs.lengths)
    given = {
        each.name: inputs[each.name].expand(count, *inputs[each.name].shape) if each.per == HEAD else inputs[each.name]
        for each in tensors(spec.rule)
    }
    return given | {name: inputs[name] for name in states(spec.rule)}


def _attention(spec: Spec, inputs: Inputs, given: Mapping[str, Tensor]) -> Named:
    per_head = {each.name for each in tensors(spec.rule) if each.per == HEAD}
    carried = tuple(states(spec.rule))
    outputs, finals = list[Tensor](), list[Named]()
    for number, (begin, end) in enumerate(itertools.pairwise(inputs.sequences.cu_seqlens.tolist())):
        tokens = {
            name: x[number] if name in per_head else x[None, begin:end]
            for name, x in given.items()
            if name not in carried
        }
        y, final = reference.memory_attention(
            spec.rule,
            tokens,
            {name: given[name][number, None] for name in carried},
            chunk_size=spec.problem.chunk,
            outer_gradient="first_order" if spec.problem.direction == "backward_first_order" else "bilevel",
        )
        outputs.append(y[0])
        finals.append(final)
    return {"y": torch.cat(outputs)} | {name: torch.cat([each[name] for each in finals]) for name in carried}
