"""How a model of transformers is drawn, loaded and saved: whole, or not at all."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedModel

from trellis_ops.hf.configuration import TrellisHFConfig
from trellis_ops.hf.errors import PretrainedError
from trellis_ops.hf.folders.remote_code import write_remote_code
from trellis_ops.lm.block import Block, draw_maps

_HALF = (torch.bfloat16, torch.float16)


def gate_names(blocks: nn.ModuleList) -> list[str]:
    """What makes the gates of any block, by the names of its modules and parameters: float32 in half precision."""
    mixer = cast(Block, blocks[0]).mixer
    gates = set(map(id, mixer.gates()))
    named = itertools.chain(mixer.named_modules(), mixer.named_parameters())
    return [f"mixer.{name}" for name, each in named if id(each) in gates]


def cast_weights(model: TrellisPreTrainedModel, dtype: torch.dtype) -> None:
    """Cast the weights of a model as `from_pretrained` does: where `dtype` is half precision, gates stay float32."""
    kept = model._keep_in_fp32_modules_strict or () if dtype in _HALF else ()
    for name, weight in model.named_parameters():
        weight.data = weight.data.to(torch.float32 if any(each in name for each in kept) else dtype)


class TrellisPreTrainedModel(PreTrainedModel):
    """What both models share: how they are drawn, loaded and saved."""

    config_class = TrellisHFConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["TrellisBlock"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["cache", "past_key_values", "cache_params"]

    def _init_weights(self, module: nn.Module) -> None:
        # The constructors draw all weights as TrellisLM does; an embedding is also drawn when it is resized.
        if isinstance(module, nn.Embedding):
            draw_maps(module, self.config.num_hidden_layers)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *arguments: Any, **others: Any
    ) -> Any:
        """The model of a folder; see `PreTrainedModel.from_pretrained`.

        Raises:
            PretrainedError: weights are missing, too many, of another shape, or cut short, or their index or
                `generation_config.json` is; nothing is half-loaded.
        """
        wants_info = others.pop("output_loading_info", False)
        path = pretrained_model_name_or_path
        _check_generation(path, others.get("subfolder") or "")
        try:
            model, info = super().from_pretrained(path, *arguments, output_loading_info=True, **others)
        except (SafetensorError, json.JSONDecodeError) as error:
            raise PretrainedError(path=path, problem=f"its weights are damaged ({error})") from error
        for kind in ("missing", "unexpected", "mismatched"):
            if names := sorted(map(str, info[f"{kind}_keys"])):
                problem = f"{len(names)} of its weights are {kind}, the first is {names[0]}"
                raise PretrainedError(path=path, problem=problem)
        return (model, info) if wants_info else model

    def save_pretrained(self, save_directory: str | os.PathLike[str], *arguments: Any, **others: Any) -> None:
        """Write weights and configuration, and the module by which `trust_remote_code=True` finds the classes."""
        super().save_pretrained(save_directory, *arguments, **others)
        write_remote_code(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: every folder names its classes, and transformers need not copy this module into it."""


def _check_generation(path: str | os.PathLike[str] | None, subfolder: str) -> None:
    """Raise where a local folder has a damaged `generation_config.json`, for which transformers takes its defaults."""
    file = None if path is None else Path(path, subfolder, "generation_config.json")
    if file is not None and file.is_file():
        try:
            json.loads(file.read_bytes())
        except ValueError as error:
            raise PretrainedError(path=path, problem=f"its {file.name} is damaged ({error})") from error
