"""A few steps of Trainer on texts that a small model learns at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from tests.trellis_ops.hf.small import VOCAB
from trellis_ops.hf import TrellisForCausalLM


def dataset(count: int = 16, length: int = 12) -> list[dict[str, Any]]:
    start = torch.randint(VOCAB, (count, 1), generator=torch.Generator().manual_seed(0))
    rows = (start + torch.arange(length)) % VOCAB
    return [{"input_ids": row, "labels": row} for row in rows]


def trained(model: TrellisForCausalLM, folder: Path, **options: Any) -> list[float]:
    """The losses of a few steps."""
    fixed = {"use_cpu": True, "report_to": [], "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True}
    fixed |= {"max_steps": 6, "learning_rate": 1e-2, "per_device_train_batch_size": 8, "seed": 0}
    arguments = TrainingArguments(output_dir=str(folder), **{**fixed, **options})
    trainer = Trainer(model=model, args=arguments, train_dataset=dataset())
    trainer.train()
    return [each["loss"] for each in trainer.state.log_history if "loss" in each]
