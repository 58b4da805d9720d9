"""Entrances of the reference model: its configuration, its files, its checkpoints, and the options of training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.hostile.entrance import Entrance
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train import cli
from trellis_ops.lm.train.data.text import read_documents
from trellis_ops.lm.train.data.tokenizer import from_json
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.saving import checkpoint as checkpoints
from trellis_ops.lm.train.saving.checkpoint import Checkpoint
from trellis_ops.lm.train.saving.exclusive import exclusive
from trellis_ops.lm.train.saving.resumable import check_resumable
from trellis_ops.lm.weights import model_file

TINY = TrellisConfig(vocab_size=256, layers=1, width=8, heads=1, num_slots=8, chunk_size=8)
_FILE = "model.pt"


@functools.cache
def _weights() -> dict[str, torch.Tensor]:
    return TrellisLM(TINY).state_dict()


def _model(change: Callable[[dict[str, Any], str], None]) -> Entrance:
    """A file of a model with a name in it, as a version without digests wrote it."""

    def entrance(name: str, given: Path) -> None:
        content: dict[str, Any] = {"config": TINY.to_dict(), "weights": dict(_weights())}
        change(content, name)
        torch.save(content, given / _FILE)
        model = TrellisLM.load(given / _FILE)
        model_file.save(model.config, model.state_dict(), given / _FILE)
        assert {path.name for path in given.iterdir()} == {_FILE}

    return entrance


def _checkpoint(change: Callable[[Checkpoint, str], Checkpoint]) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        config, settings = TINY.to_dict(), Settings().to_dict()
        plain = Checkpoint(0, config, settings, "", "0", 0.0, dict(_weights()), {}, {}, checkpoints.random_states())
        path = given / "checkpoint.safetensors"
        checkpoints.save(change(plain, name), path)
        read = checkpoints.load(path)
        check_resumable(path, read, TINY, Settings())
        checkpoints.load_model(path)

    return entrance


def _metadata(name: str, given: Path) -> None:
    path = given / "checkpoint.safetensors"
    save_file({name: torch.ones(1)}, path, metadata={"trellis_ops": name, name: name})
    checkpoints.load(path)


def _format(name: str, given: Path) -> None:
    path = given / "checkpoint.safetensors"
    save_file({}, path, metadata={"trellis_ops": checkpoints.json.dumps({"format": name})})
    checkpoints.load(path)


def _besides(name: str, given: Path) -> None:
    path = given / "checkpoint.safetensors"
    plain = {"step": 0, "config": {}, "settings": {}, "tokenizer": "", "text": "", "seconds": 0.0}
    save_file({}, path, metadata={"trellis_ops": checkpoints.json.dumps({"format": 1, **plain, name: 1})})
    checkpoints.load(path)


def _texts(name: str, given: Path) -> None:
    """Ends of names and names of folders, which are compared and never opened."""
    (given / "texts" / "inner").mkdir(parents=True)
    (given / "texts" / "inner" / "a.txt").write_text("text")
    found = read_documents([given / "texts"], [name, ".txt"], [name])
    assert [document.name for document in found] == [str(given / "texts" / "inner" / "a.txt")]
    read_documents([given / "texts"], [f"{name}!"], [name])


def _text_file(name: str, given: Path) -> None:
    """A file of that name below a folder that is read, where the system has such names."""
    (given / "texts").mkdir()
    try:
        (given / "texts" / f"{name}.txt").write_text("text", encoding="utf-8")
    except (OSError, ValueError):
        return
    assert all(Path(document.name).parent == given / "texts" for document in read_documents([given / "texts"]))


def _option(*arguments: str) -> Entrance:
    def entrance(name: str, given: Path) -> None:
        (given / "text.txt").write_text("text")
        cli.main(
            [str(given / "text.txt"), f"--folder={given / 'run'}", *(each.replace("NAME", name) for each in arguments)]
        )

    return entrance


def _work(name: str, given: Path) -> None:
    (given / "run").mkdir()
    holder = given / "run" / ".training.holder"
    holder.write_text(checkpoints.json.dumps({"pid": 1, "host": name}))
    with exclusive(given / "run", "training"):
        holder.write_text(checkpoints.json.dumps({"pid": 1, "host": name}))
        with exclusive(given / "run", "training"):
            pass


def _changed_config(field: str) -> Callable[[dict[str, Any], str], None]:
    return lambda content, name: content["config"].update({field: name})


_NAMED_FIELDS = ("rule", "phi", "link", "out", "step_size", "outer_gradient", "decode", "num_slots", "width", "phi_eps")

ENTRANCES: dict[str, Entrance] = {
    **{
        f"{field} of a model": lambda name, given, field=field: replace(TINY, **{field: name})
        for field in _NAMED_FIELDS
    },
    "a preset": lambda name, given: TrellisConfig.preset(name),
    "a field of a model": lambda name, given: TrellisConfig.from_dict({**asdict(TINY), name: 1}),
    **{f"{field} in a model's file": _model(_changed_config(field)) for field in _NAMED_FIELDS},
    "a field in a model's file": _model(lambda content, name: content["config"].update({name: 1})),
    "a weight in a model's file": _model(lambda content, name: content["weights"].update({name: torch.ones(1)})),
    "a part of a model's file": _model(lambda content, name: content.update({name: 1})),
    "a digest in a model's file": _model(lambda content, name: content.update({"sha256": name})),
    **{
        f"a name among the {group} of a checkpoint": _checkpoint(
            lambda run, name, group=group: replace(run, **{group: {**getattr(run, group), name: torch.ones(1)}})
        )
        for group in ("weights", "optimizer", "carried", "random")
    },
    "a setting of a checkpoint": _checkpoint(lambda run, name: replace(run, settings={**run.settings, name: 1})),
    "the mixer of a checkpoint": _checkpoint(lambda run, name: replace(run, settings={**run.settings, "mixer": name})),
    "a field of a checkpoint's model": _checkpoint(lambda run, name: replace(run, config={**run.config, name: 1})),
    "phi of a checkpoint's model": _checkpoint(lambda run, name: replace(run, config={**run.config, "phi": name})),
    "the tokenizer of a checkpoint": _checkpoint(lambda run, name: replace(run, tokenizer=name)),
    "the text of a checkpoint": _checkpoint(lambda run, name: replace(run, text=name)),
    "the metadata of a checkpoint": _metadata,
    "the format of a checkpoint": _format,
    "what a checkpoint holds besides": _besides,
    "a tokenizer": lambda name, given: from_json(name),
    "suffixes and folders to skip": _texts,
    "a file of text": _text_file,
    **{
        f"train --{option}": _option(f"--{option}=NAME")
        for option in ("preset", "mixer", "tokenizer", "rule", "phi", "link", "precision", "device", "slots", "steps")
    },
    "who works in a folder": _work,
}
