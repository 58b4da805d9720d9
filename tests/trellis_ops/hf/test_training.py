"""Training by transformers, accelerate and peft: every gradient, every sample and every adapter counts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import DataCollatorWithFlattening

from tests.trellis_ops.hf import ranks
from tests.trellis_ops.hf.small import greedy, padded, pair, tokens
from tests.trellis_ops.hf.training import trained

ROWS = [tokens(n, seed=n) for n in (17, 3, 9, 1)]


@torch.no_grad()
def test_the_loss_is_that_of_the_next_token() -> None:
    """Its mean, or its sum over `num_items_in_batch`, which Trainer gives over accumulated batches."""
    lm, hf = pair()
    rows = torch.stack([tokens(12), tokens(12, seed=1)])
    labels = rows.masked_fill(torch.arange(12) < 4, -100)
    expected = F.cross_entropy(lm(rows)[0][:, 3:-1].flatten(0, 1), rows[:, 4:].flatten(), reduction="sum")
    torch.testing.assert_close(hf(rows, labels=labels).loss, expected / 16)
    torch.testing.assert_close(hf(rows, labels=labels, num_items_in_batch=torch.tensor(20)).loss, expected / 20)


def test_accumulated_batches_are_one_large_batch(tmp_path: Path) -> None:
    losses = [
        trained(pair()[1], tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
        for size in (8, 2)
    ]
    assert losses[0][-1] < losses[0][0] - 0.5
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_checkpointed_gradients_are_the_gradients(tmp_path: Path) -> None:
    _, hf = pair()
    rows = torch.stack([tokens(12), tokens(12, seed=1)])
    found = []
    for reentrant in (None, False, True):
        hf.train()
        if reentrant is not None:
            hf.gradient_checkpointing_enable({"use_reentrant": reentrant})
            hf.enable_input_require_grads()
        hf.zero_grad()
        hf(rows, labels=rows).loss.backward()
        assert all(weight.grad is not None for weight in hf.parameters())
        found.append([weight.grad.clone() for weight in hf.parameters()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two)


def test_bfloat16_and_checkpointing_train(tmp_path: Path) -> None:
    losses = trained(pair()[1], tmp_path, bf16=True, gradient_checkpointing=True)
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    "given", [("position_ids",), ("cu_seq_lens_q",), ("seq_idx",), ("position_ids", "cu_seq_lens_q")]
)
def test_packed_samples_do_not_see_each_other(given: tuple[str, ...]) -> None:
    """Whichever way the collator says where they begin (NeMo-Automodel #2147)."""
    lm, hf = pair()
    collator = DataCollatorWithFlattening(
        return_position_ids="position_ids" in given,
        return_flash_attn_kwargs="cu_seq_lens_q" in given,
        return_seq_idx="seq_idx" in given,
    )
    batch = collator([{"input_ids": row.tolist()} for row in ROWS])
    assert set(given) <= set(batch)
    with torch.no_grad():
        found = hf(**batch).logits[0].split([len(row) for row in ROWS])
        for row, logits in zip(ROWS, found, strict=True):
            torch.testing.assert_close(logits, lm(row[None])[0][0], rtol=1e-4, atol=1e-5)
    gradients = []
    several, mask = padded(ROWS, "right")
    labels = several.masked_fill(mask == 0, -100)
    for inputs in (batch, {"input_ids": several, "attention_mask": mask, "labels": labels}):
        hf.zero_grad()
        hf(**inputs, use_cache=False).loss.backward()
        gradients.append([weight.grad.clone() for weight in hf.parameters()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("changes", [{"step_size": "token"}, {"rule": "gated_deltanet", "chunk_size": None}], ids=str)
def test_every_linear_map_takes_an_adapter(changes: dict[str, Any], tmp_path: Path) -> None:
    """Gradients reach each; merged weights give the logits and tokens of the adapters (peft #2274, #2556, #3554)."""
    _, hf = pair(**changes)
    linears = [name for name, module in hf.model.named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = get_peft_model(hf, LoraConfig(target_modules="all-linear", r=2, init_lora_weights=False))
    rows = torch.stack([tokens(12), tokens(12, seed=1)])
    adapted(input_ids=rows, labels=rows).loss.backward()
    adapters = {name: weight for name, weight in adapted.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * len(linears)
    assert [name for name, weight in adapters.items() if weight.grad is None or not weight.grad.any()] == []
    adapted.eval()
    with torch.no_grad():
        unmerged = adapted(input_ids=rows).logits
        generated = adapted.generate(input_ids=rows, max_new_tokens=6, do_sample=False)
        adapted.save_pretrained(tmp_path)
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(rows).logits, unmerged, rtol=1e-3, atol=1e-4)
        assert torch.equal(greedy(merged, rows, 6), generated)


def test_inductor_compiles_training_and_inference() -> None:
    """Each as one graph, in which the operators are calls, whatever computes them."""
    rows = torch.stack([tokens(16), tokens(16, seed=1)])
    found = []
    for compiled in (False, True):
        _, hf = pair(layers=1)
        model = torch.compile(hf, fullgraph=True) if compiled else hf
        optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(rows, labels=rows, use_cache=False).loss
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            found.append((loss.detach(), model(rows, use_cache=False).logits, *hf.parameters()))
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_inductor_compiles_padded_rows() -> None:
    """In several graphs, as what padding is decides what is computed."""
    _, hf = pair(layers=1)
    rows, mask = padded(ROWS, "left")
    given = {"input_ids": rows, "attention_mask": mask, "use_cache": False}
    torch.testing.assert_close(torch.compile(hf)(**given).logits, hf(**given).logits, rtol=1e-4, atol=1e-5)


def test_two_processes_train_as_one_with_the_doubled_batch(tmp_path: Path) -> None:
    """Under DistributedDataParallel, and by Trainer, which wraps the model in it."""
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", ranks.__name__, str(tmp_path)],
            cwd=Path(__file__).parents[3],
            env={**os.environ, **ranks.environment(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    _, hf = pair()
    rows = torch.stack([tokens(12, seed=seed) for seed in range(4)])
    hf(rows, labels=rows).loss.backward()
    gradients = load_file(tmp_path / ranks.GRADIENTS)
    assert len(gradients) > 10
    for name, weight in hf.named_parameters():
        torch.testing.assert_close(gradients[name], weight.grad, rtol=1e-3, atol=1e-5)
    _, hf = pair()
    assert trained(hf, tmp_path) == pytest.approx(json.loads((tmp_path / ranks.LOSSES).read_text()), rel=1e-4)
    for name, weight in load_file(tmp_path / ranks.WEIGHTS).items():
        torch.testing.assert_close(weight, hf.get_parameter(name), rtol=1e-3, atol=1e-4)
