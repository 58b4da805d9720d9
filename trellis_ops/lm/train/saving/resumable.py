"""Whether a checkpoint is whole: every tensor that its run needs, in its shape and type, before any of them is used."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.train.errors import CheckpointError
from trellis_ops.lm.train.objective import Objective, build_model
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.saving.checkpoint import Checkpoint, check_tensors, random_states
from trellis_ops.lm.weights.undrawn import undrawn

_MOMENTS = ("exp_avg", "exp_avg_sq")


def check_resumable(path: Path, checkpoint: Checkpoint, config: TrellisConfig, settings: Settings) -> None:
    """Raise unless a run of `config` and `settings` can go on from a checkpoint.

    Raises:
        CheckpointError: with the name of what is missing, too much, or of another shape or type.
    """
    if not 0 <= checkpoint.step <= settings.steps:
        problem = f"it is after step {checkpoint.step} of {settings.steps}; move it away to start anew"
        raise CheckpointError(path=path, problem=problem)
    if not 0.0 <= checkpoint.seconds < math.inf:
        raise CheckpointError(path=path, problem=f"its steps took {checkpoint.seconds} s; move it away to start anew")
    with undrawn():
        model = build_model(config, settings)
        first = Objective(model).first(settings.batch)
    begun = checkpoint.step > 0
    check_tensors(path, "weights", checkpoint.weights, model.state_dict())
    parameters = dict(model.named_parameters())
    moments = {f"{name}/{moment}": tensor for name, tensor in parameters.items() for moment in _MOMENTS}
    steps = {f"{name}/step": torch.empty((), device="meta") for name in parameters}
    check_tensors(path, "optimizer", checkpoint.optimizer, {**moments, **steps} if begun else {})
    check_tensors(path, "carried", checkpoint.carried, first if begun and settings.carry else {})
    _check_random(path, checkpoint)


def _check_random(path: Path, checkpoint: Checkpoint) -> None:
    known = random_states()
    # A GPU's state is of no use elsewhere, and none is there if the run began elsewhere.
    found = {name: state for name, state in checkpoint.random.items() if name in known or name != "cuda"}
    expected = {name: state for name, state in known.items() if name in checkpoint.random or name != "cuda"}
    check_tensors(path, "random", found, expected)
    try:
        torch.Generator().set_state(found["cpu"])
    except RuntimeError as error:
        raise CheckpointError(path=path, problem=f"random cpu is no state of a generator ({error})") from error
