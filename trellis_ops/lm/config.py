"""What a reference language model is made of: its sizes, its rule, and the settings that the tuner may choose."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from codegen.device import Device, cpu
from codegen.errors import SizeError, UnknownMapError
from codegen.recurrence.of_rule import used_chunk_states
from codegen.rule import SOLVE, Rule
from codegen.scalars import positive_number, whole_number
from codegen.spec import MAX_DIM, MAX_SLOTS
from trellis_ops.lm import recommended
from trellis_ops.lm.recommended import Budgets
from trellis_ops.lm.rules.configured import OF_THE_RULE, check_chunk, configured, record_of
from trellis_ops.lm.rules.named import rule_inputs
from trellis_ops.outer_gradient import is_first_order
from tuning_db import Recommendation, default_store

DEFAULT_SLOTS = 64
"""Slot count that `num_slots="auto"` takes where nothing is recommended; the paper's at 125M parameters."""

DEFAULT_CHUNK = 64
"""Chunk size where none is given or recommended; the paper names none."""

DECODES = ("chunked", "exact")
"""Where decoding takes the inner gradient: at the chunk's start, like the chunked forward, or at the current state."""

_COUNTS = {
    "vocab_size": 2**24,
    "layers": 2**12,
    "width": 2**20,
    "heads": 2**16,
    "conv_width": 2**16,
    "mlp_multiple": 2**16,
}
"""The most of each: far above any model that was made, and below what Python would build for hours."""

_MOST_MLP_WIDTH = 2**24
_POSITIVE = ("phi_eps", "mlp_ratio", "norm_eps", "init_step_size")


class MissingRecommendationWarning(UserWarning):
    """A setting is "auto", but nothing usable is recommended for the device; the message says what was taken."""


@dataclass(frozen=True)
class TrellisConfig:
    """Sizes, rule and options of a `TrellisLM`; the block is figure 1 of arXiv 2512.23852.

    The paper names neither `phi`, `phi_eps`, C, the first state nor any normalisation of q, k and v. The defaults here
    were chosen by measurements, see docs/learning.md: `ln_silu` with `phi_eps` 1, from a zero state, with L2-normalised
    q, k, v. From a zero state a write of step size gamma acts like one of gamma / (4 phi_eps) with phi = identity, and
    up to C times that, as the tokens of a chunk do not see each other's writes. The defaults make it 0.025. Where it is
    far above 1, as at `phi_eps` 1e-2 and below, the first writes of a sequence overshoot, and text is learned worse.

    Attributes:
        vocab_size: number of tokens; 32,000 is that of the Llama 2 tokenizer, 256 is bytes.
        layers: number of blocks.
        width: width of the residual stream.
        heads: H.
        dim_k, dim_v: D_k and D_v; None is `width // heads`.
        num_slots: M, or "auto" for the tuner's recommendation.
        chunk_size: C, or "auto" for the tuner's recommendation; 1 is the exact recurrence. Changes the result. None
            becomes `DEFAULT_CHUNK`, or with a rule that of its layer in `trellis_ops.lm.rules.named`.
        latency_budget_us, state_budget_bytes: with these, "auto" takes of the tuner's front the best in recall whose
            memories take at most so many microseconds per token in all layers, and whose state has at most so many
            bytes per sequence; with neither it takes the knee. See `trellis_ops.lm.recommended`.
        phi, link, out, phi_eps: see `codegen.rule.Rule`; settings of TRELLIS, which leave no room for another rule.
        outer_gradient: "bilevel" trains through z, "first_order" takes it for a constant; the forward is the same.
        step_size: "head" for one learned step size per head, "token" for one per head and token.
        learned_state: whether the state that a sequence starts from is a parameter, drawn from N(0, 1/D), or zero.
        normalize_qkv: whether q, k and v have unit length per head.
        decode: "chunked" keeps the chunk-start states beside the current ones until the chunk ends, so that decoding
            continues the forward over all tokens; "exact" keeps only the current ones and takes z there.
        conv_width: tokens that the causal convolutions of q and k see, the current one included.
        mlp_ratio: hidden width of the SwiGLU over `width`, rounded up to a multiple of `mlp_multiple`.
        mlp_multiple: what that width is rounded up to a multiple of.
        norm_eps: epsilon of every RMSNorm.
        init_decay: forget gate at the start of training, between 0 and 1.
        init_step_size: step size at the start of training.
        rule: what the memory computes in the place of TRELLIS: the name of a rule, the text of one as JSON, or a
            `Rule`, which is kept as its text. A rule that is TRELLIS with other maps becomes None and those settings.
            What the layer makes for it is in `trellis_ops.lm.rules.named`; q, k and v have unit length where a rule
            needs it. `num_slots` concerns rules of two passes, and "auto" then takes the defaults.

    Raises:
        UnknownRuleError, RuleError: a rule that there is not, or one that another setting contradicts.
        SizeError: a number outside its range. UnknownMapError: an unknown map, step size or way to decode.
        ValueError: an unknown outer gradient.

    Example:
        >>> TrellisConfig.preset("tiny", chunk_size=1).key_width
        128
    """

    vocab_size: int = 32_000
    layers: int = 12
    width: int = 768
    heads: int = 12
    dim_k: int | None = None
    dim_v: int | None = None
    num_slots: int | Literal["auto"] = DEFAULT_SLOTS
    chunk_size: int | Literal["auto"] | None = None
    latency_budget_us: float | None = None
    state_budget_bytes: int | None = None
    phi: str = "ln_silu"
    link: str = "ln_silu"
    out: str = "identity"
    phi_eps: float = 1.0
    outer_gradient: str = "bilevel"
    step_size: str = "head"
    learned_state: bool = False
    normalize_qkv: bool = True
    decode: str = "chunked"
    conv_width: int = 4
    mlp_ratio: float = 8 / 3
    norm_eps: float = 1e-6
    init_decay: float = 0.99
    init_step_size: float = 0.1
    mlp_multiple: int = 64
    rule: str | Rule | None = None

    def __post_init__(self) -> None:
        self._take_rule()
        is_first_order(self.outer_gradient)
        if self.decode not in DECODES:
            raise UnknownMapError(role="decode", name=self.decode, known=", ".join(DECODES))
        for name, largest in _COUNTS.items():
            self._make_int(name, largest)
        if (self.dim_k is None or self.dim_v is None) and self.width % self.heads:
            expected = f"a multiple of heads={self.heads} where dim_k or dim_v is not given"
            raise SizeError(name="width", value=self.width, expected=expected)
        for name in ("dim_k", "dim_v"):
            if getattr(self, name) is None:
                whole_number(name, self.width // self.heads, MAX_DIM)
            else:
                self._make_int(name, MAX_DIM)
        for name, most in (("num_slots", MAX_SLOTS), ("chunk_size", None)):
            if getattr(self, name) != "auto":
                self._make_int(name, most, ' or "auto"')
        if self.state_budget_bytes is not None:
            self._make_int("state_budget_bytes")
        limits = ("latency_budget_us",) if self.latency_budget_us is not None else ()
        for name in (*_POSITIVE, "init_decay", *limits):
            object.__setattr__(self, name, positive_number(name, getattr(self, name)))
        if self.mlp_ratio * self.width > _MOST_MLP_WIDTH:
            expected = f"at most {_MOST_MLP_WIDTH // self.width} for width={self.width}"
            raise SizeError(name="mlp_ratio", value=self.mlp_ratio, expected=expected)
        if not self.init_decay < 1.0:
            raise SizeError(
                name="init_decay", value=self.init_decay, expected="a number between 0 and 1, both excluded"
            )

    def _take_rule(self) -> None:
        settings = {name: getattr(self, name) for name in OF_THE_RULE}
        rule, taken = configured(self.rule, settings, self.learned_state)
        for name, value in {**taken, "rule": rule}.items():
            object.__setattr__(self, name, value)
        if self.chunk_size is None:
            object.__setattr__(self, "chunk_size", DEFAULT_CHUNK if rule is None else rule_inputs(rule).chunk)
        check_chunk(self.record, self.chunk_size)

    def _make_int(self, name: str, most: int | None = None, also: str = "") -> None:
        object.__setattr__(self, name, whole_number(name, getattr(self, name), most, also))

    @classmethod
    def preset(cls, name: str, **changes: Any) -> TrellisConfig:
        """The preset called `name`, one of `PRESETS`, with `changes` to its fields; a rule brings its own chunk size.

        Raises:
            UnknownMapError: another name.
        """
        if name not in PRESETS:
            raise UnknownMapError(role="preset", name=name, known=", ".join(PRESETS))
        if changes.get("rule") not in (None, "trellis"):
            changes = {"chunk_size": None, **changes}
        return replace(PRESETS[name], **changes)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrellisConfig:
        """The configuration that `to_dict` described; fields left out take their defaults.

        Raises:
            UnknownMapError: a field that there is not. SizeError, UnknownMapError: as the constructor.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise UnknownMapError(role="field", name=name, known=", ".join(known))
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, fit for JSON and for `from_dict`."""
        return asdict(self)

    @property
    def record(self) -> Rule:
        """The rule that the memory computes."""
        return record_of(self.rule, {name: getattr(self, name) for name in OF_THE_RULE})

    @property
    def key_width(self) -> int:
        """Width of q and of k over all heads, H D_k."""
        return self.heads * self.dim_k if self.dim_k is not None else self.width

    @property
    def value_width(self) -> int:
        """Width of v over all heads, H D_v."""
        return self.heads * self.dim_v if self.dim_v is not None else self.width

    @property
    def mlp_width(self) -> int:
        """Hidden width of the SwiGLU."""
        return max(1, -(-int(self.mlp_ratio * self.width) // self.mlp_multiple)) * self.mlp_multiple

    @property
    def slots(self) -> int:
        """M; a SizeError while it is still "auto". As many as D_k where the target of a rule is k."""
        if self.record.link == SOLVE:
            return self.key_width // self.heads
        return self._resolved_count("num_slots")

    @property
    def chunk(self) -> int:
        """C; a SizeError while it is still "auto"."""
        return self._resolved_count("chunk_size")

    @property
    def keeps_starts(self) -> bool:
        """Whether decoding keeps chunk-start states beside the current ones; a rule may read none."""
        if self.decode != "chunked" or self.chunk == 1:
            return False
        return self.rule is None or bool(used_chunk_states(self.record, True))

    @property
    def starts_learned(self) -> bool:
        """Whether some memory starts from a parameter, as asked for or because the rule's layer needs it."""
        return self.learned_state or (self.rule is not None and rule_inputs(self.rule).first_state)

    def resolved(self, device: Device | None = None) -> TrellisConfig:
        """This configuration with every "auto" replaced by the number the tuner recommends for `device`.

        M and C change what a model computes. So a model keeps the resolved configuration, and a checkpoint means the
        same on every machine.

        Args:
            device: the machine to run on; None is this machine's CPU.

        Raises:
            BudgetExceededError: nothing recommended fits into the budgets.

        Warns:
            MissingRecommendationWarning: nothing usable is recommended; `DEFAULT_SLOTS`, `DEFAULT_CHUNK` are taken.
        """
        auto = [name for name in ("num_slots", "chunk_size") if getattr(self, name) == "auto"]
        if not auto:
            return self
        if self.rule is not None:
            own: dict[str, Any] = {"num_slots": DEFAULT_SLOTS, "chunk_size": rule_inputs(self.rule).chunk}
            return replace(self, **{name: own[name] for name in auto})
        key = (device or cpu()).key()
        found = default_store().recommendation(key)
        problem = _unusable(found)
        if found is None or problem:
            chosen = {"num_slots": DEFAULT_SLOTS, "chunk_size": DEFAULT_CHUNK}
            taken = ", ".join(f"{name}={chosen[name]}" for name in auto)
            text = f'{problem} for {key}, so "auto" takes the default {taken}; run `make tune`, or give numbers'
            warnings.warn(text, MissingRecommendationWarning, stacklevel=2)
        else:
            row = recommended.chosen(found, self._budgets())
            chosen = {"num_slots": row.slots, "chunk_size": row.chunk}
        changes: dict[str, Any] = {name: chosen[name] for name in auto}
        return replace(self, **changes)

    def _budgets(self) -> Budgets:
        return Budgets(
            self.latency_budget_us,
            self.state_budget_bytes,
            self.layers,
            self.heads,
            (self.key_width + self.value_width) // self.heads,
            states=2 if self.decode == "chunked" else 1,
        )

    def _resolved_count(self, name: str) -> int:
        count = getattr(self, name)
        if not isinstance(count, int):
            raise SizeError(name=name, value=repr(count), expected="a number here; call resolved() first")
        return count


def _unusable(found: Recommendation | None) -> str:
    if found is None:
        return "no slot count and chunk size are recommended"
    if found.slots > MAX_SLOTS:
        return f"the recommended slot count {found.slots} is above {MAX_SLOTS}"
    return ""


PRESETS: dict[str, TrellisConfig] = {
    "tiny": TrellisConfig(vocab_size=256, layers=2, width=128, heads=4, num_slots=32, chunk_size=16),
    "125M": TrellisConfig(layers=12, width=768, heads=12),
    "350M": TrellisConfig(layers=24, width=1024, heads=16),
    "780M": TrellisConfig(layers=24, width=1536, heads=16),
}
"""Published sizes (arXiv 2512.23852, M = 64) and `tiny`, a model of bytes for demonstrations and tests."""
