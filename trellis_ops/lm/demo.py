"""The reference model on real text: train the tiny preset on the bytes of a file for a moment, then let it go on.

    python -m trellis_ops.lm.demo README.md

This shows that the parts work together, not what the model can do: half a million parameters that saw one short file
learn its spelling and its phrases. The last tenth of the file is held out.
`trellis_ops.lm.shipped` has a trained model.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from codegen.errors import SizeError, TrellisError
from trellis_ops.files import regular_file
from trellis_ops.lm.config import PRESETS, TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.sampling import Sampling
from trellis_ops.lm.train.options.ranges import count
from trellis_ops.lm.train.options.schedule import rate_share
from trellis_ops.lm.train.options.settings import MOST_STEPS, MOST_TOKENS, Settings
from trellis_ops.lm.train.processes.memory import memory_limits

_PIECE = 4096
"""Bytes whose logits are held at once while measuring; the state goes on from piece to piece."""


def read_bytes(path: Path) -> Tensor:
    """The bytes of a file as int64 tokens `[n]`; raises IrregularFileError or OSError where there is none."""
    content = bytearray(regular_file.read_bytes(path))
    # torch makes no tensor from an empty buffer.
    return torch.frombuffer(content, dtype=torch.uint8).long() if content else torch.empty(0, dtype=torch.int64)


@torch.no_grad()
def bits_per_byte(model: TrellisLM, text: Tensor) -> float:
    """Mean bits to encode each byte of `text [n]` after the first, read as one sequence of any length."""
    total, state = 0.0, None
    for start in range(0, len(text) - 1, _PIECE):
        targets = text[start + 1 : start + 1 + _PIECE]
        logits, state = model(text[None, start : start + len(targets)], state)
        total += F.cross_entropy(logits[0].float(), targets, reduction="sum").item()
    return total / math.log(2.0) / (len(text) - 1)


def train(model: TrellisLM, text: Tensor, steps: int, batch: int, length: int, learning_rate: float) -> None:
    """Fit random windows of `text [n]` by AdamW with a linear warm-up and a cosine decay."""
    length = min(length, len(text) - 1)
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_share(step, steps, warmup))
    for step in range(1, steps + 1):
        starts = torch.randint(len(text) - length, (batch, 1))
        windows = text[starts + torch.arange(length + 1)]
        logits, _ = model(windows[:, :-1], return_state=False)
        loss = F.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % max(1, steps // 5) == 0:
            print(f"  step {step}: {loss.item() / math.log(2.0):.2f} bits per byte on the last batch", flush=True)


def continue_text(model: TrellisLM, prompt: bytes, new_bytes: int, temperature: float) -> None:
    """Print the prompt and what the model makes of it, then how fast that was and how large its state is."""
    tokens = torch.tensor([list(prompt)])
    _, state = model(tokens)
    before = state.nbytes() if state is not None else 0
    written = bytearray(prompt)
    started = time.perf_counter()
    for token in model.stream(tokens, new_bytes, temperature):
        written.append(int(token))
    seconds = time.perf_counter() - started
    print(f"\n{written.decode(errors='replace')}\n")
    _, state = model(torch.tensor([list(written)]))
    after = state.nbytes() if state is not None else 0
    print(f"{new_bytes} bytes in {seconds:.2f} s: {new_bytes / seconds:.0f} tokens per second, one at a time")
    print(f"state: {before} bytes after {len(prompt)} tokens, {after} bytes after {len(written)}")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    options = _parser().parse_args(arguments)
    try:
        with memory_limits():
            _show(options)
    except (TrellisError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def _show(options: argparse.Namespace) -> None:
    # Refused before the training, not after it.
    Sampling(options.temperature)
    Settings(learning_rate=options.learning_rate, batch=options.batch, length=options.length)
    torch.manual_seed(options.seed)
    text = read_bytes(options.file)
    held_out = len(text) // 10
    if held_out < 2:
        raise SizeError(name=f"length of {options.file}", value=len(text), expected="at least 20 bytes")
    fit, rest = text[:-held_out], text[-held_out:]
    config = TrellisConfig.preset(options.preset, vocab_size=256)
    if options.chunk_size is not None:
        config = TrellisConfig.from_dict({**config.to_dict(), "chunk_size": options.chunk_size})
    model = TrellisLM(config)
    print(f"{options.preset}: {model.count_parameters():,} parameters, M = {config.slots}, C = {config.chunk}")
    print(f"{options.file}: {len(fit)} bytes to fit, the last {len(rest)} held out")
    print(f"held out, before: {bits_per_byte(model, rest):.2f} bits per byte")
    started = time.perf_counter()
    train(model, fit, options.steps, options.batch, options.length, options.learning_rate)
    print(f"held out, after {options.steps} steps in {time.perf_counter() - started:.0f} s: ", end="")
    print(f"{bits_per_byte(model, rest):.2f} bits per byte")
    # What was typed need not be UTF-8.
    continue_text(model, os.fsencode(options.prompt) or bytes([10]), options.new_bytes, options.temperature)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trellis_ops.lm.demo", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("file", type=Path, help="any text; its bytes are the tokens")
    parser.add_argument("--preset", default="tiny", choices=PRESETS, help="size of the model (default: tiny)")
    parser.add_argument("--chunk-size", type=int, help="C (default: the preset's)")
    parser.add_argument("--steps", type=count(1, MOST_STEPS), default=300, help="training steps (default: 300)")
    parser.add_argument("--batch", type=int, default=16, help="windows per step (default: 16)")
    parser.add_argument("--length", type=int, default=256, help="bytes per window (default: 256)")
    parser.add_argument("--learning-rate", type=float, default=3e-3, help="peak learning rate (default: 0.003)")
    parser.add_argument("--prompt", default="## ", help='what to go on from (default: "## ")')
    parser.add_argument("--new-bytes", type=count(0, MOST_TOKENS), default=200, help="bytes to generate (default: 200)")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest byte (default: 0.7)")
    parser.add_argument(
        "--seed", type=count(-(2**63), 2**63 - 1), default=0, help="seed of weights, windows and draws (default: 0)"
    )
    return parser


if __name__ == "__main__":
    main(sys.argv[1:])
