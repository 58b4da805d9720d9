"""One number that is not finite: no other head or sequence may show it, its own must; the same for every backend.

What an operator is given and what it gives are named tensors, of tokens `[B, T, H, ..]` or of states `[N, H, M, D]`,
also where sequences are packed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from codegen.kernels.launches import GRADIENTS
from tests.support.cases.backward import NAMES, backward_spec, cotangents, run_backward
from tests.support.cases.kernels import Build, Case
from tests.support.inputs import Inputs
from tests.support.operators import run_attention, run_readout, run_step, run_update
from tests.support.relative_error import TOLERANCE, assert_close
from trellis_ops import reference
from trellis_ops.tokens import Tokens

Tensors = dict[str, Tensor]
Run = Callable[[Tensors], Tensors]
Names = tuple[str, ...] | None  # What is poisoned; None is all that the operator reads.

NAN, INF = float("nan"), float("inf")
SEQUENCE, HEAD, TOKEN = 1, 1, 8
"""Where the number lies: programs run before and after this one, of its own sequence and of others."""
LENGTHS = (5, 21, 9)
"""Of packed sequences; a batch has as many of the poisoned one's length."""

_OF_TOKENS = Tokens._fields
_STATES = ("S_k", "S_v")


def batch(case: Case) -> Case:
    return dataclasses.replace(case, lengths=(LENGTHS[SEQUENCE],) * len(LENGTHS))


def packed(case: Case) -> Case:
    return dataclasses.replace(case, lengths=LENGTHS, packed=True)


def check_attention(build: Build, case: Case, names: Names = None) -> None:
    compiled = build(case.spec)

    def run(given: Tensors) -> Tensors:
        y, states = run_attention(compiled, _inputs(given), case.lengths)
        return {"y": y} | dict(zip(_STATES, states, strict=True))

    def oracle(given: Tensors) -> Tensors:
        inputs = _inputs(given)
        options = {"chunk_size": case.chunk, "initial_state": inputs.initial_state}
        y, states = reference.attention(*inputs.args, rule=case.rule, **options)
        return {"y": y} | dict(zip(_STATES, states, strict=True))

    _check(case, run, oracle, _tensors(case.inputs()), names)


def check_update(build: Build, case: Case, names: Names = None) -> None:
    compiled, results = build(case.spec), ("chunk_states", "codes", "S_k")

    def run(given: Tensors) -> Tensors:
        return dict(zip(results, run_update(compiled, _inputs(given)), strict=True))

    def oracle(given: Tensors) -> Tensors:
        memory = (given[name] for name in ("k", "target", "log_decay", "step_size"))
        options = {"chunk_size": case.chunk, "initial_state": given["S_k"]}
        return dict(zip(results, reference.update(*memory, rule=case.rule, **options), strict=True))

    _check(case, run, oracle, _tensors(case.inputs()), names or ("k", "target", "log_decay", "step_size", "S_k"))


def check_readout(build: Build, case: Case, names: Names = None) -> None:
    compiled, tensors = build(case.spec), _tensors(case.inputs())
    transpose = case.operator == "memory_readout_transposed"
    gates, options = ("log_decay", "step_size"), {"chunk_size": case.chunk}
    memory = (tensors[name] for name in ("k", "target", *gates))
    states, codes, _ = reference.update(*memory, rule=case.rule, initial_state=tensors["S_k"], **options)
    tensors |= {"chunk_states": states.float(), "codes": codes.float()}
    read = "target" if transpose else "q"

    def run(given: Tensors) -> Tensors:
        return {"y": run_readout(compiled, given[read], _inputs(given), given["chunk_states"], given["codes"])}

    def oracle(given: Tensors) -> Tensors:
        memory = (given[name] for name in (read, "k", "chunk_states", "codes", *gates))
        return {"y": reference.readout(*memory, transpose=transpose, **options)}

    _check(case, run, oracle, tensors, names or (read, "k", "chunk_states", "codes", *gates))


def check_step(build: Build, case: Case, names: Names = None) -> None:
    """A step is a sequence of one token; of a chunked one the first states are poisoned like the others."""
    compiled, tensors = build(case.spec), _tensors(case.inputs())
    if case.operator == "trellis_step_chunked":
        tensors |= {f"G_{name[-1]}": 2.0 * tensors[name].flip(-1) for name in _STATES}

    def gradient_state(given: Tensors) -> tuple[Tensor, Tensor] | None:
        return (given["G_k"], given["G_v"]) if "G_k" in given else None

    def run(given: Tensors) -> Tensors:
        y, states = run_step(compiled, _inputs(given), gradient_state(given))
        return {"y": y[:, None]} | dict(zip(_STATES, states, strict=True))

    def oracle(given: Tensors) -> Tensors:
        token, state = _inputs(given).token(0), (given["S_k"], given["S_v"])
        y, states = reference.step(*token, state, rule=case.rule, gradient_state=gradient_state(given))
        return {"y": y[:, None]} | dict(zip(_STATES, states, strict=True))

    _check(case, run, oracle, tensors, names)


def check_backward(build: Build, case: Case, outer_gradient: str = "bilevel", names: Names = None) -> None:
    compiled, inputs = build(backward_spec(case, outer_gradient)), case.inputs()
    incoming = ("y", *_STATES)
    tensors = _tensors(inputs) | {f"d{name}": x for name, x in cotangents(case, inputs).items()}

    def run(given: Tensors) -> Tensors:
        return run_backward(compiled, case, _inputs(given), GRADIENTS, {name: given[f"d{name}"] for name in incoming})

    def oracle(given: Tensors) -> Tensors:
        leaves = _inputs(given).to(torch.float64).leaves()
        options = {"chunk_size": case.chunk, "initial_state": leaves.initial_state, "outer_gradient": outer_gradient}
        y, states = reference.attention(*leaves.args, rule=case.rule, **options)
        incoming_given = [given[f"d{name}"].double() for name in incoming]
        return {"y": y} | dict(
            zip(NAMES, torch.autograd.grad((y, *states), leaves.tensors, incoming_given), strict=True)
        )

    _check(case, run, oracle, tensors, names)


def _check(case: Case, run: Run, oracle: Run, tensors: Tensors, names: Names) -> None:
    poisons = _poisons(names or tuple(tensors))
    inputs = [tensors | {name: _poisoned(case, name, tensors[name], value)} for name, value in poisons]
    results = [run(given) for given in inputs]
    clean = run(tensors)
    for key, x in clean.items():
        assert x.isfinite().all(), f"{key}: a later call shows it"
    for (name, value), given, found in zip(poisons, inputs, results, strict=True):
        expected = oracle({key: _alone(case, key, x) for key, x in given.items()})
        for key, x in found.items():
            what = f"{key} of {name} with {value}"
            own, wanted = _own(case, key, x), _own(case, key, expected[key], alone=True)
            assert torch.equal(_others(case, key, x), _others(case, key, clean[key])), f"{what}: another head shows it"
            hidden = own.isfinite() & ~wanted.isfinite()
            assert not hidden.any(), f"{what}: {int(hidden.sum())} of {hidden.numel()} are finite"
            # The gradient of a head's step_size is the sum over all sequences, which the oracle here has not seen.
            if value == -INF and x.dim() > 1:
                assert_close(own, wanted, 10 * TOLERANCE[torch.float32], what)


def _poisons(names: tuple[str, ...]) -> list[tuple[str, float]]:
    """Tensors, and what one number of each is.

    That log beta is -inf forgets everything, and is legal; 3e38 is finite, and what is computed of it is not.
    """
    others = (("k", INF), ("k", 3e38), ("log_decay", INF), ("log_decay", -INF), ("step_size", INF))
    return [*((name, NAN) for name in names), *(each for each in others if each[0] in names)]


def _poisoned(case: Case, name: str, x: Tensor, value: float) -> Tensor:
    changed = x.clone()
    own = _own(case, name, changed)
    own[(min(TOKEN, len(own) - 1), *(0,) * (own.dim() - 1))] = value
    return changed


def _is_state(name: str) -> bool:
    return name.removeprefix("d")[:2] in ("S_", "G_")


def _own(case: Case, name: str, x: Tensor, alone: bool = False) -> Tensor:
    """The part of x, given or found, that is the poisoned head's."""
    sequence, head = (0, 0) if alone else (SEQUENCE, HEAD)
    if x.dim() == 1:  # Gamma of a head, or its gradient: that of all sequences.
        return x[head : head + 1]
    if _is_state(name):
        return x[sequence, head]
    if case.packed and not alone:
        start = sum(case.lengths[:sequence])
        return x[0, start : start + case.lengths[sequence], head]
    return x[sequence, :, head]


def _others(case: Case, name: str, x: Tensor) -> Tensor:
    changed = x.clone()
    _own(case, name, changed).zero_()
    return changed


def _alone(case: Case, name: str, x: Tensor) -> Tensor:
    """x with no other sequence and head."""
    own = _own(case, name, x)
    if x.dim() == 1:
        return own
    return own[None, None] if _is_state(name) else own[None, :, None]


def _tensors(inputs: Inputs) -> Tensors:
    return dict(zip((*_OF_TOKENS, *_STATES), inputs.tensors, strict=True))


def _inputs(tensors: Tensors) -> Inputs:
    return Inputs(*(tensors[name] for name in _OF_TOKENS), (tensors["S_k"], tensors["S_v"]))
