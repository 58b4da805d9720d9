"""What a user of a GPU would otherwise run for a rule: flash-linear-attention's kernel of the same rule, and its step.

Each is given the tensors of the rule as its own arguments, and the initial states in its own layout, `[D_k, D_v]`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from codegen.device import Device
from codegen.kernels.signatures import MOVES_STATES
from codegen.recurrence.tensors import HEAD, states, tensors
from codegen.rules import NAMED
from codegen.spec import Spec
from tuner.measure.timed import Timed
from tuner.verify.inputs.trellis import Inputs, make_inputs

Named = Mapping[str, Tensor]
Arguments = dict[str, Any]

FLASH_QLA = "chunk_gated_delta_rule:FLA_FLASH_QLA=1"
"""The kernel of FlashQLA in the place of fla's own of the gated delta rule."""

_FLA, _PACKAGE, _SWITCH = "fla.ops", "flash_qla", "FLA_FLASH_QLA"
_WIDTH_OF_FLASH_QLA = 128
_MINI_BATCH = 16


@dataclass(frozen=True)
class Kernels:
    """The kernels of a rule.

    Attributes:
        module: below `fla.ops`.
        chunk: the function for many tokens.
        step: the one for a token, empty where there is none that takes `[B, T, H, D]`.
        arguments: what both are given beside q, k, v and states, of the tensors of the rule.
        first: the initial states as arguments.
    """

    module: str
    chunk: str
    step: str
    arguments: Callable[[Named], Arguments]
    first: Callable[[Named], Arguments]


def _called(weighed: str = "", **names: str) -> Callable[[Named], Arguments]:
    """Tensors of the rule by their names there; no scale, which the rule has not.

    Args:
        weighed: the tensor there that is multiplied by the step size, which they have not; empty for none.
        names: tensors of the rule.
    """

    def called(given: Named) -> Arguments:
        found = {theirs: given[ours] for theirs, ours in names.items()}
        if weighed:
            found[weighed] = _weighed(found.get(weighed, given["v"]), given)
        return found | {"scale": 1.0}

    return called


def _weighed(x: Tensor, given: Named) -> Tensor:
    return (x * given["step_size"][..., None]).to(x)


def _one(given: Named) -> Arguments:
    return {"initial_state": given["S"].mT.contiguous(), "output_final_state": True}


def _two(given: Named) -> Arguments:
    """Of slots: `[D_k, M]` and `[M, D_v]`."""
    return {"initial_state": (given["S_k"].mT.contiguous(), given["S_v"]), "output_final_state": True}


def _mesa_states(given: Named) -> Arguments:
    return {"h_kk_init": given["S_k"], "h_kv_init": given["S_v"], "output_final_state": True}


def _momentum_states(given: Named) -> Arguments:
    """Its momentum has the other sign."""
    both = (given["S"].mT.contiguous(), -given["P"].mT.contiguous())
    return {"initial_state": both, "output_final_state": True}


def _gdn2(given: Named) -> Arguments:
    """Its erase gate is what the probe is of the key, its write gate one for all columns."""
    gates = {"b": _weighed(given["probe"] / given["k"], given), "w": _weighed(torch.ones_like(given["v"]), given)}
    return {"g": given["log_decay"], "scale": 1.0} | gates


def _titans(given: Named) -> Arguments:
    """The key is its probe."""
    gates = {"log_alpha": given["log_decay"], "log_mu": given["momentum"].log(), "eta": given["step_size"]}
    ways = {"use_qk_l2norm_in_kernel": False, "use_p_times_alpha": False, "scale": 1.0}
    return {**gates, "beta": torch.ones_like(given["step_size"]), **ways}


def _ttt(given: Named) -> Arguments:
    """With a bias, which moves too, and with the step of the reader only."""
    norm = {"w": given["gain"], "b": torch.zeros_like(given["gain"])}
    return norm | {"eta": given["reader_step"][..., None], "chunk_size": _MINI_BATCH, "scale": 1.0}


def _mesa(given: Named) -> Arguments:
    return {"g": given["log_decay"], "beta": given["step_size"], "lamb": given["regulariser"]}


def _kernels(module: str, name: str, arguments: Callable[[Named], Arguments]) -> Kernels:
    return Kernels(module, f"chunk_{name}", f"fused_recurrent_{name}", arguments, _one)


_DELTA = _called(g="log_decay", beta="step_size")

KERNELS = {
    "linear": _kernels("simple_gla", "simple_gla", _called("v", g="log_decay")),
    "gla": Kernels("gla", "chunk_gla", "", _called("v", g="log_decay"), _one),
    "gsa": Kernels("gsa", "chunk_gsa", "fused_recurrent_gsa", _called("s", s="target", g="log_decay"), _two),
    "deltanet": _kernels("delta_rule", "delta_rule", _called(beta="step_size")),
    "gated_deltanet": _kernels("gated_delta_rule", "gated_delta_rule", _DELTA),
    "comba": _kernels("comba", "comba", _called(p="probe", g="log_decay", beta="step_size")),
    "kda": _kernels("kda", "kda", _DELTA),
    "gdn2": _kernels("gdn2", "gdn2", _gdn2),
    "rwkv7": _kernels(
        "generalized_delta_rule", "dplr_delta_rule", _called("v", gk="log_decay", a="erase_a", b="erase_b")
    ),
    "oja": _kernels("gated_oja_rule", "gated_oja_rule", _called(gv="log_decay", beta="step_size")),
    "ttt_linear": Kernels("ttt", "chunk_ttt_linear", "", _ttt, _one),
    "titans": Kernels(
        "momentum_delta_rule",
        "chunk_momentum_delta_rule",
        "fused_recurrent_momentum_delta_rule",
        _titans,
        _momentum_states,
    ),
    "mesanet": Kernels("mesa_net", "chunk_mesa_net", "", _mesa, _mesa_states),
}
"""By the name of the rule; rules of equal records share them."""


def names_of(spec: Spec) -> tuple[str, ...]:
    """The rivals of a spec of a rule; all may try tens of configurations when they are first called."""
    kernels = _of(spec)
    if kernels is None:
        return ()
    if spec.problem.operator in MOVES_STATES:
        return (kernels.step,) if kernels.step else ()
    wide = spec.problem.dim_k == spec.problem.dim_v == _WIDTH_OF_FLASH_QLA
    fused = kernels.chunk == FLASH_QLA.partition(":")[0] and wide and importlib.util.find_spec(_PACKAGE) is not None
    return (kernels.chunk, FLASH_QLA) if fused else (kernels.chunk,)


def rule_rival(name: str, spec: Spec, device: Device) -> Timed:
    """One of `names_of`, of a backward with its gradients.

    Raises:
        ImportError, AttributeError: flash-linear-attention does not have it.
    """
    kernels = _of(spec)
    assert kernels is not None, f"{spec.key()} has no rival {name}"
    function_name, _, fused = name.partition(":")
    function = getattr(importlib.import_module(f"{_FLA}.{kernels.module}"), function_name)
    with torch.no_grad():
        arguments = _arguments(kernels, spec, device)

    def run() -> Tensor:
        with _flash_qla("1" if fused else "0"):
            y: Tensor = function(**arguments)[0]
        return y

    if spec.problem.direction == "forward":
        return Timed(run, lambda: None)
    leaves = [leaf.requires_grad_() for each in arguments.values() for leaf in _tensors(each)]
    with torch.enable_grad():
        cotangent = torch.randn_like(run())
    return Timed(lambda: torch.autograd.grad(run(), leaves, cotangent, allow_unused=True), lambda: None)


def _arguments(kernels: Kernels, spec: Spec, device: Device) -> Arguments:
    lengths = (spec.problem.tokens,) * spec.problem.batch
    given = _given(spec, make_inputs(spec, lengths, device, drawn_there=True))
    return {name: given[name] for name in "qkv"} | kernels.arguments(given) | kernels.first(given)


def _tensors(argument: object) -> tuple[Tensor, ...]:
    if isinstance(argument, tuple):
        return argument
    return (argument,) if isinstance(argument, Tensor) else ()


@contextlib.contextmanager
def _flash_qla(value: str) -> Iterator[None]:
    """fla reads the variable at every call."""
    before = os.environ.get(_SWITCH)
    os.environ[_SWITCH] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SWITCH]
        else:
            os.environ[_SWITCH] = before


def _of(spec: Spec) -> Kernels | None:
    return next((each for name, each in KERNELS.items() if NAMED[name].rule == spec.rule), None)


def _given(spec: Spec, inputs: Inputs) -> dict[str, Tensor]:
    """The tensors `[B, T, H, ...]`, of what each head has `[H, ...]`, and the states."""
    per_head = {each.name for each in tensors(spec.rule) if each.per == HEAD}
    batch = spec.problem.batch
    given = {
        each.name: inputs[each.name]
        if each.name in per_head
        else inputs[each.name].reshape(batch, -1, *inputs[each.name].shape[1:])
        for each in tensors(spec.rule)
    }
    return given | {name: inputs[name] for name in states(spec.rule)}
