"""Weights and moments of a model by name, whole, however its processes share it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_OF_THE_OBJECTIVE = "model."


def gathered_weights(objective: nn.Module) -> dict[str, Tensor]:
    """The parameters of the objective's model; with several processes, in the first one only."""
    state: dict[str, Any] = get_model_state_dict(objective, options=_WHOLE)
    return {name.removeprefix(_OF_THE_OBJECTIVE): tensor for name, tensor in state.items()}


def optimizer_moments(objective: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """What the optimizer remembers, as "<parameter>/<moment>"; with several processes, in the first one only."""
    state: dict[str, Any] = get_optimizer_state_dict(objective, optimizer, options=_WHOLE)
    return {
        f"{name.removeprefix(_OF_THE_OBJECTIVE)}/{moment}": tensor
        for name, moments in state.get("state", {}).items()
        for moment, tensor in moments.items()
    }


def set_optimizer_moments(objective: nn.Module, optimizer: Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Give the optimizer what `optimizer_moments` returned, which every process must have."""
    state: dict[str, dict[str, Tensor]] = {}
    for name, tensor in moments.items():
        parameter, _, moment = name.rpartition("/")
        state.setdefault(f"{_OF_THE_OBJECTIVE}{parameter}", {})[moment] = tensor
    groups = []
    for group in optimizer.param_groups:
        settings = {name: value for name, value in group.items() if name != "params"}
        groups.append({**settings, "params": _names(objective, group["params"])})
    whole: Any = {"state": state, "param_groups": groups}
    set_optimizer_state_dict(objective, optimizer, whole, options=StateDictOptions(full_state_dict=True))


def _names(objective: nn.Module, parameters: list[Tensor]) -> list[str]:
    wanted = {id(parameter) for parameter in parameters}
    return [name.removeprefix("module.") for name, parameter in objective.named_parameters() if id(parameter) in wanted]
