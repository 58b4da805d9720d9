"""The options of `python -m trellis_ops.lm.train`: which text, which model, which run."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

from codegen.rule import MAPS
from codegen.rules import NAMED
from trellis_ops.lm.config import PRESETS, TrellisConfig
from trellis_ops.lm.train.data.text import EXCLUDED, SUFFIXES
from trellis_ops.lm.train.data.tokenizer import TOKENIZERS
from trellis_ops.lm.train.options.ranges import MOST_THREADS, count
from trellis_ops.lm.train.options.settings import MIXERS, MOST_STEPS, PRECISIONS, Settings
from trellis_ops.outer_gradient import OUTER_GRADIENTS

_DEFAULTS = Settings()


def parser() -> argparse.ArgumentParser:
    """The parser; `settings_of` and `config_of` read what it returns."""
    options = argparse.ArgumentParser(
        prog="python -m trellis_ops.lm.train",
        description="Train the reference model on text. The same command again goes on where it was stopped.",
    )
    options.add_argument("data", nargs="+", type=Path, help="files, and folders that are read recursively")
    options.add_argument("--folder", type=Path, required=True, help="where checkpoint, curve and summary go")
    options.add_argument("--fresh", action="store_true", help="start anew even if the folder holds a checkpoint")
    options.add_argument(
        "--save-every", metavar="STEPS", type=count(1, MOST_STEPS), default=100, help="steps between checkpoints (100)"
    )
    options.add_argument("--device", default="auto", help="cpu or cuda (default: a GPU where there is one)")
    options.add_argument("--threads", type=count(1, MOST_THREADS), help="threads of torch (default: torch's choice)")
    options.add_argument("--fsdp", action="store_true", help="under torchrun: keep the model in pieces (FSDP2)")
    _text_options(options.add_argument_group("text"))
    _model_options(options.add_argument_group("model"))
    _run_options(options.add_argument_group("run"))
    return options


def settings_of(options: argparse.Namespace) -> Settings:
    """The settings of the run."""
    return Settings(**{field.name: getattr(options, field.name) for field in fields(Settings)})


def config_of(options: argparse.Namespace, vocab_size: int) -> TrellisConfig:
    """The configuration of the model: the preset with what was given."""
    names = [field.name for field in fields(TrellisConfig) if field.name in vars(options)]
    given: dict[str, Any] = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return TrellisConfig.preset(options.preset, **given, vocab_size=vocab_size)


def _text_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--suffix", nargs="+", default=SUFFIXES, help=f"below folders (default: {' '.join(SUFFIXES)})")
    group.add_argument(
        "--exclude", nargs="*", default=EXCLUDED, metavar="NAME", help=f"folders to skip ({' '.join(EXCLUDED)})"
    )
    group.add_argument("--tokenizer", choices=TOKENIZERS, default=_DEFAULTS.tokenizer, help="default: bytes")
    group.add_argument("--vocab", type=int, default=_DEFAULTS.vocab, help=f"tokens of a BPE ({_DEFAULTS.vocab})")
    share = f"share to measure on, never fitted ({_DEFAULTS.held_out})"
    group.add_argument("--held-out", type=float, default=_DEFAULTS.held_out, metavar="SHARE", help=share)


def _model_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--preset", default="tiny", choices=PRESETS, help="what the others change (default: tiny)")
    rule = f"what the memory computes (default: trellis): {', '.join(NAMED)}, or a rule's text as JSON"
    group.add_argument("--rule", metavar="RULE", help=rule)
    group.add_argument("--mixer", choices=MIXERS, default=_DEFAULTS.mixer, help="softmax: attention, to compare with")
    for name in ("layers", "width", "heads"):
        group.add_argument(f"--{name}", type=int)
    group.add_argument("--slots", dest="num_slots", type=_count, metavar="M", help='slots per head, or "auto"')
    group.add_argument("--chunk-size", type=_count, metavar="C", help='tokens per chunk, 1 for exact, or "auto"')
    group.add_argument("--phi", choices=MAPS, help='map of the write; "identity" is the gated delta rule')
    group.add_argument("--phi-eps", type=float)
    group.add_argument("--init-step-size", type=float, help="step size of the write at the start of training")
    group.add_argument("--init-decay", type=float, help="forget gate at the start of training")
    group.add_argument("--link", choices=MAPS, help="map between the passes")
    group.add_argument("--outer-gradient", choices=OUTER_GRADIENTS)
    flag = argparse.BooleanOptionalAction
    group.add_argument("--learned-state", action=flag, help="whether the first state is a parameter")
    group.add_argument("--normalize-qkv", action=flag, help="whether q, k and v have unit length")


def _run_options(group: argparse._ArgumentGroup) -> None:
    for name, kind, text in (
        ("steps", int, "updates of the weights"),
        ("batch", int, "windows per step, over all processes"),
        ("length", int, "tokens per window, a multiple of C; gradients reach no further"),
        ("learning-rate", float, "its peak"),
        ("final-rate", float, "its end, as a share of the peak"),
        ("warmup", int, "steps of linear rise"),
        ("weight-decay", float, "of AdamW, on matrices only"),
        ("clip", float, "largest norm of the gradient"),
        ("eval-every", int, "steps between measurements"),
        ("eval-tokens", int, "held-out tokens per measurement; the last one reads all"),
        ("seed", int, "of weights and order"),
    ):
        default = getattr(_DEFAULTS, name.replace("-", "_"))
        group.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{text} ({default})")
    group.add_argument("--precision", choices=PRECISIONS, default="auto", help="auto: bfloat16 on a GPU that has it")
    group.add_argument(
        "--carry",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether windows of a document go on from the state before (default: yes)",
    )


def _count(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r:.80} is neither a whole number nor "auto"') from None
