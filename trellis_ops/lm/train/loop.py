"""The training loop: steps, measurements and checkpoints of one run, in one process or in several."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.train.curve import Curve, Row
from trellis_ops.lm.train.data.lanes import Batch, Lanes
from trellis_ops.lm.train.errors import DivergedError
from trellis_ops.lm.train.objective import Carried, Objective, build_model
from trellis_ops.lm.train.options.schedule import rate_share
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.processes.interruption import deferred
from trellis_ops.lm.train.processes.ranks import Processes, share_model
from trellis_ops.lm.train.progress import TrainingProgress
from trellis_ops.lm.train.saving import checkpoint as checkpoints
from trellis_ops.lm.train.saving.checkpoint import Checkpoint
from trellis_ops.lm.train.saving.weights import gathered_weights, optimizer_moments, set_optimizer_moments


@dataclass(frozen=True)
class Texts:
    """What a run reads.

    Attributes:
        fit: windows to learn from.
        held_out: windows to measure on.
        byte_counts: bytes of each token.
        tokenizer: as `Tokenizer.to_json` gave it.
        fingerprint: of the text to learn from.
    """

    fit: Lanes
    held_out: Lanes
    byte_counts: Tensor
    tokenizer: str
    fingerprint: str


class Trainer:
    """One run between two of its steps.

    Args:
        config: the model's.
        settings: the run's.
        texts: what it reads.
        processes: this process and those beside it.
        shard: whether the model is kept in pieces (FSDP2).
        resume: where to go on, which must come from a run with the same config, settings and text.
    """

    def __init__(
        self,
        config: TrellisConfig,
        settings: Settings,
        texts: Texts,
        processes: Processes,
        shard: bool = False,
        resume: Checkpoint | None = None,
    ) -> None:
        self.settings, self._texts, self._processes = settings, texts, processes
        self.text = texts.fingerprint
        torch.manual_seed(settings.seed)
        model = build_model(config, settings)
        if resume is not None:
            model.load_state_dict(resume.weights)
        self.config, self.parameters = model.config, model.count_parameters()
        objective = Objective(model.to(processes.device), product_type(settings.precision, processes.device))
        self._objective = share_model(objective, processes, shard)
        self._optimizer = _optimizer(self._objective, settings)
        self._carried: Carried | None = None
        self.step, self.seconds = 0, 0.0
        if resume is not None:
            self._go_on(resume)

    def advance(self) -> Row:
        """Take one step.

        Raises:
            DivergedError: the loss is not finite.
        """
        started = time.perf_counter()
        whole = self._texts.fit.batch(self.step)
        counted = whole.counted()
        rate = self.settings.learning_rate * rate_share(
            self.step, self.settings.steps, self.settings.warmup, self.settings.final_rate
        )
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._objective.train()
        loss, self._carried = self._objective(self._mine(whole), self._carried)
        if not self.settings.carry:
            self._carried = None
        # Processes average their gradients; each gives its share of the mean over all targets, times their number.
        (loss * (self._processes.count / len(counted))).backward()
        norm = nn.utils.clip_grad_norm_(self._objective.parameters(), self.settings.clip)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        nats = self._processes.sum(loss).item()
        if not math.isfinite(nats) or not math.isfinite(norm.item()):
            raise DivergedError(value=nats, step=self.step + 1, learning_rate=rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        epoch = self.step // self._texts.fit.steps + 1
        self.step += 1
        self.seconds += time.perf_counter() - started
        bits = nats / math.log(2.0) / int(self._texts.byte_counts[counted].sum())
        return Row(self.step, epoch, rate, bits, norm.item())

    @torch.no_grad()
    def measure(self, most: int | None = None) -> float:
        """Bits per byte of the held-out text, of about `most` of its tokens, or all."""
        lanes = self._texts.held_out
        tokens_per_step = self.settings.batch * self.settings.length
        steps = lanes.steps if most is None else min(lanes.steps, max(1, most // tokens_per_step))
        self._objective.eval()
        nats = torch.zeros((), dtype=torch.float64, device=self._processes.device)
        read, carried = 0, None
        for step in range(steps):
            whole = lanes.batch(step)
            loss, carried = self._objective(self._mine(whole), carried)
            nats += loss
            read += int(self._texts.byte_counts[whole.counted()].sum())
            carried = carried if self.settings.carry else None
        return self._processes.sum(nats).item() / math.log(2.0) / read

    def checkpoint(self) -> Checkpoint:
        """The run as it is now, for `checkpoints.save`; every process must call this."""
        return Checkpoint(
            step=self.step,
            config=self.config.to_dict(),
            settings=self.settings.to_dict(),
            tokenizer=self._texts.tokenizer,
            text=self._texts.fingerprint,
            seconds=self.seconds,
            weights=gathered_weights(self._objective),
            optimizer=optimizer_moments(self._objective, self._optimizer),
            carried={} if self._carried is None else self._processes.gather(self._carried),
            random=checkpoints.random_states(),
        )

    def _go_on(self, resume: Checkpoint) -> None:
        self.step, self.seconds = resume.step, resume.seconds
        set_optimizer_moments(self._objective, self._optimizer, resume.optimizer)
        if resume.carried:
            self._carried = self._processes.share(resume.carried)
        checkpoints.set_random_states(resume.random)

    def _mine(self, whole: Batch) -> Batch:
        mine, device = whole.share(self._processes.rank, self._processes.count), self._processes.device
        return Batch(mine.tokens.to(device), mine.targets.to(device), mine.fresh.to(device))


def run(trainer: Trainer, processes: Processes, curve: Curve | None, path: Path, save_every: int) -> float:
    """Take all steps that are left, and return the bits per byte of all of the held-out text.

    Args:
        trainer: the run.
        processes: this process and those beside it.
        curve: where rows go, in the first process.
        path: of the checkpoint, written every `save_every` steps, after the last, and when Ctrl-C is pressed.
        save_every: as above.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; one process alone has saved the step that was under way.
    """
    settings, held_out = trainer.settings, None
    tokens = settings.batch * settings.length
    with (
        TrainingProgress(settings.steps, trainer.step, tokens, visible=processes.is_first) as progress,
        deferred(processes.count) as interruption,
    ):
        while trainer.step < settings.steps:
            row = trainer.advance()
            if trainer.step == settings.steps:
                held_out = trainer.measure()
                row = replace(row, held_out=held_out)
            elif trainer.step % settings.eval_every == 0:
                row = replace(row, held_out=trainer.measure(settings.eval_tokens))
            if curve is not None:
                curve.add(row)
            progress.show(row)
            done, stop = trainer.step == settings.steps, interruption.requested
            if trainer.step % save_every == 0 or done or stop:
                _save(trainer, curve, path)
            if stop and not done:
                raise KeyboardInterrupt
    return trainer.measure() if held_out is None else held_out


def product_type(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast computes products in; None where there is no autocast."""
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    return torch.bfloat16 if precision == "bfloat16" else None


def _save(trainer: Trainer, curve: Curve | None, path: Path) -> None:
    state = trainer.checkpoint()
    if curve is not None:
        curve.keep()
        checkpoints.save(state, path)


def _optimizer(objective: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    """AdamW; gates, step sizes, norms and biases are not pulled to zero, where they mean something else."""
    matrices = [each for each in objective.parameters() if each.ndim >= 2]
    others = [each for each in objective.parameters() if each.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
