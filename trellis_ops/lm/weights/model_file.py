"""The file of a model: its configuration and weights with a digest of both, and nothing that could be executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codegen.errors import FileWriteError, TrellisError
from trellis_ops.errors import ModelFileError
from trellis_ops.files.content_digest import content_digest
from trellis_ops.files.regular_file import open_to_read, replaced
from trellis_ops.lm.config import TrellisConfig

_PARTS = {"config", "weights"}


def save(config: TrellisConfig, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put a model in the place of `path`, which holds the old content or the new one, whole.

    Raises:
        FileWriteError, IrregularFileError: the file cannot be written.
    """
    plain = config.to_dict()
    content = {"config": plain, "weights": weights, "sha256": _digest(plain, weights)}
    with replaced(path) as unfinished, unfinished.open("wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # What the disk said has become the context of what torch says.
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            raise FileWriteError(path=path, reason=reason) from error


def load(path: Path) -> tuple[TrellisConfig, dict[str, Tensor]]:
    """What `save` wrote, on the CPU; files of versions that wrote no digest are read without one.

    Raises:
        ModelFileError: another file, or a damaged one. IrregularFileError, OSError: none that can be read.
    """
    with open_to_read(path) as file:
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        # torch raises what its parts do: of the archive, of the pickle, of the storages.
        except Exception as error:
            problem = f"torch cannot read it as plain data ({type(error).__name__})"
            raise ModelFileError(path=path, problem=problem) from error
    if not isinstance(content, dict) or content.keys() not in (_PARTS, _PARTS | {"sha256"}):
        raise ModelFileError(path=path, problem="it has other content")
    plain, weights = content["config"], content["weights"]
    if not isinstance(plain, dict) or not isinstance(weights, dict):
        raise ModelFileError(path=path, problem="its configuration or its weights are something else")
    try:
        if "sha256" in content and content["sha256"] != _digest(plain, weights):
            raise ModelFileError(path=path, problem="it is damaged: its digest is not that of its content")
        return TrellisConfig.from_dict(plain), weights
    except ModelFileError:
        raise
    except (TrellisError, TypeError, ValueError, AttributeError) as error:
        raise ModelFileError(path=path, problem=str(error)) from error


def check_weights(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise unless `found` are weights of the names and shapes of `expected`, of floating-point types.

    Raises:
        ModelFileError: with the first name that does not fit.
    """
    for name in sorted({*found, *expected}, key=str):
        if name not in found or name not in expected:
            raise ModelFileError(path=path, problem=f"{name} is {'missing' if name in expected else 'no weight'}")
        tensor = found[name]
        if tensor.shape != expected[name].shape:
            shapes = f"{list(tensor.shape)}, expected {list(expected[name].shape)}"
            raise ModelFileError(path=path, problem=f"{name} has shape {shapes}")
        if not tensor.is_floating_point():
            raise ModelFileError(path=path, problem=f"{name} has dtype {tensor.dtype}, expected a floating-point type")


def _digest(plain: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    return content_digest(json.dumps(plain, sort_keys=True), weights)
