"""Checkpoints: one safetensors file that holds a run between two steps, and nothing that could be executed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trellis_ops.config import TrellisConfig
from trellis_ops.train.errors import CheckpointError, MissingPackageError
from trellis_ops.train.objective import LanguageModel, build_model
from trellis_ops.train.settings import Settings

FORMAT = 1
"""Raised when a file written before can no longer be read."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps; how many processes wrote it does not show.

    Attributes:
        step: steps done; with the seed, this is the position in the text.
        config: the model's, as plain data.
        settings: the run's, as plain data.
        tokenizer: what `Tokenizer.to_json` gave.
        text: the fingerprint of the text that is fitted.
        seconds: time that the steps took.
        weights: the model's parameters, by name.
        optimizer: "<parameter>/<moment>" to tensor.
        carried: what the lanes carry.
        random: states of the random generators, by device type.
    """

    step: int
    config: dict[str, Any]
    settings: dict[str, Any]
    tokenizer: str
    text: str
    seconds: float
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    carried: dict[str, Tensor]
    random: dict[str, Tensor]


_GROUPS = ("weights", "optimizer", "carried", "random")


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint so that `path` holds the old one or the new one, whenever the machine stops."""
    from safetensors.torch import save_file

    plain = {name: value for name, value in vars(checkpoint).items() if name not in _GROUPS}
    # Each tensor gets memory of its own: safetensors refuses views of one storage.
    tensors = {
        f"{group}:{name}": tensor.detach().clone(memory_format=torch.contiguous_format)
        for group in _GROUPS
        for name, tensor in getattr(checkpoint, group).items()
    }
    unfinished = path.with_name(f"{path.name}.unfinished")
    save_file(tensors, unfinished, metadata={"trellis_ops": json.dumps({"format": FORMAT, **plain})})
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path`, its tensors on the CPU.

    Raises:
        CheckpointError: no checkpoint of this project, a damaged one, or one of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            plain = json.loads((file.metadata() or {})["trellis_ops"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, ValueError) as error:
        problem = f"this is no checkpoint of this project, or a damaged one ({error}); move it away to start anew"
        raise CheckpointError(path=path, problem=problem) from error
    written = plain.pop("format", None)
    if written != FORMAT:
        raise CheckpointError(path=path, problem=f"format {written}; this version reads format {FORMAT}")
    groups: dict[str, Any] = {group: {} for group in _GROUPS}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(":")
        groups[group][rest] = tensor
    return Checkpoint(**plain, **groups)


def load_model(path: Path) -> LanguageModel:
    """The model of a checkpoint, for generating text or for measuring; on the CPU.

    Raises:
        CheckpointError: as `load`.
    """
    checkpoint = load(path)
    with torch.device("meta"):
        model = build_model(TrellisConfig.from_dict(checkpoint.config), Settings(**checkpoint.settings))
    model.load_state_dict(checkpoint.weights, assign=True)
    return model


def random_states() -> dict[str, Tensor]:
    """The states of torch's generators, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Put the generators into `states`; a device that is not here is left out."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def require_safetensors() -> None:
    """Raise before any work is done, not at the first checkpoint."""
    try:
        import safetensors.torch  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(package="safetensors") from error
