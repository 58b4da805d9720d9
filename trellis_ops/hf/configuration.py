"""The configuration of a model in transformers: the fields of `TrellisConfig`, four of them by their standard names."""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Any, ClassVar, Literal

from transformers import PreTrainedConfig

from trellis_ops.hf.errors import PretrainedError
from trellis_ops.hf.folders.remote_code import AUTO_MAP, write_remote_code
from trellis_ops.lm.config import TrellisConfig

FORMAT = 1
"""Of a folder: what its weights are called, and what its configuration means."""

_STANDARD = {"layers": "num_hidden_layers", "width": "hidden_size", "heads": "num_attention_heads"}
"""Fields of `TrellisConfig` that have another name in every configuration of transformers."""


class TrellisHFConfig(PreTrainedConfig):
    """Sizes, rule and options of a `TrellisForCausalLM`, as `config.json` holds them.

    Every field that is not named below is that of `trellis_ops.lm.config.TrellisConfig`, with its default, its meaning
    and its errors. "auto" is resolved for this machine's CPU when the configuration is made, so that a saved one means
    the same everywhere.

    Attributes:
        hidden_size, num_hidden_layers, num_attention_heads: `width`, `layers` and `heads`, which name them too.
        use_cache: whether a forward returns its cache unless told otherwise.
        tie_word_embeddings: whether the output map is the embedding, as in `TrellisLM`.
        trellis_format: see `FORMAT`; another one is refused.
        pad_token_id, bos_token_id, eos_token_id: those of the tokenizer, or None.

    Raises:
        UnknownRuleError, RuleError, SizeError, UnknownMapError, ValueError: as `TrellisConfig`.
        PretrainedError: the configuration of another model, or of another format.

    Example:
        >>> TrellisHFConfig(hidden_size=128, num_attention_heads=4).to_trellis().dim_k is None
        True
    """

    model_type = "trellis"
    attribute_map: ClassVar[dict[str, str]] = _STANDARD
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]

    vocab_size: int = TrellisConfig.vocab_size
    hidden_size: int = TrellisConfig.width
    num_hidden_layers: int = TrellisConfig.layers
    num_attention_heads: int = TrellisConfig.heads
    dim_k: int | None = TrellisConfig.dim_k
    dim_v: int | None = TrellisConfig.dim_v
    num_slots: int | Literal["auto"] = TrellisConfig.num_slots
    chunk_size: int | Literal["auto"] | None = TrellisConfig.chunk_size
    latency_budget_us: float | None = TrellisConfig.latency_budget_us
    state_budget_bytes: int | None = TrellisConfig.state_budget_bytes
    phi: str = TrellisConfig.phi
    link: str = TrellisConfig.link
    out: str = TrellisConfig.out
    phi_eps: float = TrellisConfig.phi_eps
    outer_gradient: str = TrellisConfig.outer_gradient
    step_size: str = TrellisConfig.step_size
    learned_state: bool = TrellisConfig.learned_state
    normalize_qkv: bool = TrellisConfig.normalize_qkv
    decode: str = TrellisConfig.decode
    conv_width: int = TrellisConfig.conv_width
    mlp_ratio: float = TrellisConfig.mlp_ratio
    norm_eps: float = TrellisConfig.norm_eps
    init_decay: float = TrellisConfig.init_decay
    init_step_size: float = TrellisConfig.init_step_size
    mlp_multiple: int = TrellisConfig.mlp_multiple
    rule: str | None = None
    trellis_format: int = FORMAT
    use_cache: bool = True
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the fields and resolve "auto"."""
        self._check_written(kwargs.pop("model_type", self.model_type))
        # What a file says of these two is said by this version.
        kwargs.pop("layer_types", None)
        kwargs.pop("auto_map", None)
        for name, value in self.to_trellis().resolved().to_dict().items():
            setattr(self, _STANDARD.get(name, name), value)
        self.auto_map: dict[str, str] = dict(AUTO_MAP)
        super().__post_init__(**kwargs)

    @classmethod
    def from_trellis(cls, config: TrellisConfig, **others: Any) -> TrellisHFConfig:
        """The same model for transformers, with `others` of its fields."""
        return cls(**{_STANDARD.get(name, name): value for name, value in config.to_dict().items()}, **others)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **others: Any) -> Any:
        """The configuration of a file; see `PreTrainedConfig.from_dict`.

        Raises:
            PretrainedError: it does not say of which format it is, or is no dictionary.
        """
        if not isinstance(config_dict, dict) or "trellis_format" not in config_dict:
            raise PretrainedError(path="config.json", problem="it is missing, or has no trellis_format")
        return super().from_dict(config_dict, **others)

    def to_trellis(self) -> TrellisConfig:
        """The configuration of the reference model."""
        names = [field.name for field in fields(TrellisConfig)]
        return TrellisConfig(**{name: getattr(self, _STANDARD.get(name, name)) for name in names})

    def _check_written(self, model_type: str) -> None:
        where = "config.json"
        if model_type != self.model_type:
            raise PretrainedError(path=where, problem=f"model_type is {model_type!r}, not {self.model_type!r}")
        if self.trellis_format != FORMAT:
            problem = f"trellis_format is {self.trellis_format!r}, and this version reads {FORMAT}"
            raise PretrainedError(path=where, problem=problem)

    @property
    def layer_types(self) -> list[str]:
        """What every layer carries, in words of transformers: a state of constant size."""
        return ["linear_attention"] * self.num_hidden_layers

    def save_pretrained(self, save_directory: str | os.PathLike[str], *arguments: Any, **others: Any) -> None:
        """Write `config.json`, and the module by which `trust_remote_code=True` finds the classes."""
        super().save_pretrained(save_directory, *arguments, **others)
        write_remote_code(save_directory)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing: every folder names its classes, and transformers need not copy this module into it."""
