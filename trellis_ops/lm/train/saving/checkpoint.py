"""Checkpoints: one safetensors file that holds a run between two steps, and nothing that could be executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codegen.errors import FileWriteError, MissingPackageError, TrellisError
from trellis_ops.files.content_digest import content_digest
from trellis_ops.files.regular_file import open_to_read, replaced
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.train.errors import CheckpointError
from trellis_ops.lm.train.objective import LanguageModel, build_model
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.weights.undrawn import undrawn

FORMAT = 2
"""Since 2 there is a digest of the content; files of format 1 are read without one."""


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
_PLAIN = {"step": int, "config": dict, "settings": dict, "tokenizer": str, "text": str, "seconds": float}
_TEXT, _DIGEST = "trellis_ops", "sha256"
"""Names in the metadata of safetensors."""


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint so that `path` holds the old one or the new one, whenever the machine stops.

    Raises:
        FileWriteError, IrregularFileError: it cannot be written; the old one stays.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value for name, value in vars(checkpoint).items() if name not in _GROUPS}
    # Each tensor gets memory of its own: safetensors refuses views of one storage.
    tensors = {
        f"{group}:{name}": tensor.detach().clone(memory_format=torch.contiguous_format)
        for group in _GROUPS
        for name, tensor in getattr(checkpoint, group).items()
    }
    text = json.dumps({"format": FORMAT, **plain})
    with replaced(path) as unfinished:
        try:
            save_file(tensors, unfinished, metadata={_TEXT: text, _DIGEST: content_digest(text, tensors)})
        except SafetensorError as error:
            raise FileWriteError(path=path, reason=error) from error


def load(path: Path) -> Checkpoint:
    """The checkpoint in `path`, its tensors on the CPU.

    Raises:
        CheckpointError: no checkpoint of this project, a damaged one, or one of another format.
        IrregularFileError, OSError: no file that can be read.
    """
    from safetensors import SafetensorError, safe_open

    # safetensors would wait for ever at a named pipe.
    open_to_read(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata[_TEXT]
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        plain = json.loads(text)
        written = plain.pop("format", None)
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        problem = f"this is no checkpoint of this project, or a damaged one ({error}); move it away to start anew"
        raise CheckpointError(path=path, problem=problem) from error
    if written not in (1, FORMAT):
        raise CheckpointError(path=path, problem=f"format {written}; this version reads formats 1 and {FORMAT}")
    if written == FORMAT and metadata.get(_DIGEST) != content_digest(text, tensors):
        problem = "it is damaged, its digest is not that of its content"
        raise CheckpointError(path=path, problem=f"{problem}; put a copy in its place, or give --fresh to start anew")
    return _checkpoint(path, plain, tensors)


def _checkpoint(path: Path, plain: dict[str, Any], tensors: Mapping[str, Tensor]) -> Checkpoint:
    for name, kind in _PLAIN.items():
        if type(plain.get(name)) is not kind:
            problem = f"{name} is {plain.get(name)!r:.80}, expected {kind.__name__}; move it away to start anew"
            raise CheckpointError(path=path, problem=problem)
    if plain.keys() != _PLAIN.keys():
        raise CheckpointError(path=path, problem=f"it holds {', '.join(plain.keys() - _PLAIN.keys())} besides a run")
    groups: dict[str, Any] = {group: {} for group in _GROUPS}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(":")
        if group not in groups:
            raise CheckpointError(path=path, problem=f"the tensor {name!r} belongs to no part of a run")
        groups[group][rest] = tensor
    return Checkpoint(**plain, **groups)


def load_model(path: Path) -> LanguageModel:
    """The model of a checkpoint, for generating text or for measuring; on the CPU.

    Raises:
        CheckpointError: as `load`, or weights that do not fit the configuration beside them.
    """
    checkpoint = load(path)
    try:
        with undrawn():
            model = build_model(TrellisConfig.from_dict(checkpoint.config), Settings(**checkpoint.settings))
    except (TrellisError, TypeError, ValueError) as error:
        raise CheckpointError(path=path, problem=f"its configuration or settings are unknown ({error})") from error
    check_tensors(path, "weights", checkpoint.weights, model.state_dict())
    model.load_state_dict(checkpoint.weights, assign=True)
    return model


def check_tensors(path: Path, group: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless `found` has the names, shapes and types of `expected`, which may be on another device.

    Raises:
        CheckpointError: with the first tensor that does not fit.
    """
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected:
            problem = f"{group} {name} {'is missing' if name in expected else 'is not of this run'}"
            raise CheckpointError(path=path, problem=problem)
        mine, other = found[name], expected[name]
        if mine.shape != other.shape or mine.dtype != other.dtype:
            said, wanted = (f"{list(each.shape)} of {each.dtype}" for each in (mine, other))
            raise CheckpointError(path=path, problem=f"{group} {name} is {said}, expected {wanted}")


def random_states() -> dict[str, Tensor]:
    """The states of torch's generators, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Tensor]) -> None:
    """Put the generators into `states`; a device that is not here is left out.

    Raises:
        RuntimeError: what is no state of a generator.
    """
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def require_safetensors() -> None:
    """Raise before any work is done, not at the first checkpoint."""
    try:
        import safetensors.torch  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(package="safetensors", extra="train") from error
