"""A chat that goes on where it stopped, also tomorrow and in another process, without reading the conversation again.

    .venv/bin/python examples/resumed_chat.py --folder my-chat "What is a slot?"
    .venv/bin/python examples/resumed_chat.py --folder my-chat "And what is a chunk?"

Each call is a turn. The folder keeps the conversation, the model, a store key, and the states of the prefixes that were
read. Without `--model` the model is a small one with random weights, which answers nonsense: what is shown is how much
of the conversation is read again.
"""

from __future__ import annotations

import argparse
import secrets
from pathlib import Path

import torch

from codegen.errors import printable
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.store import Disk, PrefixStore

STATES_BYTES = 2**28
ANSWER_BYTES = 40


def model_of(folder: Path, given: Path | None) -> TrellisLM:
    """The model of the chat: what `TrellisLM.save` wrote to `given`, or a random one that the folder keeps."""
    path = given or folder / "model.pt"
    if given is None and not path.exists():
        torch.manual_seed(0)
        TrellisLM(TrellisConfig.preset("tiny")).save(path)
    return TrellisLM.load(path).eval()


def key_of(folder: Path) -> bytes:
    """The store key, made at the first turn; nobody else may read it."""
    path = folder / "key"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_bytes(secrets.token_bytes(32))
    return path.read_bytes()


def turn(folder: Path, model: TrellisLM, said: str) -> str:
    """Answer what a user said, and say how much of the conversation was read for it."""
    store = PrefixStore(key_of(folder), [Disk(folder / "states", STATES_BYTES)], tokenizer="bytes")
    prefixes = store.tenant("me")
    history = folder / "conversation"
    before = history.read_bytes() if history.exists() else b""
    prompt = torch.tensor([list(before + f"User: {said}\nModel: ".encode())])
    whole = model.generate(prompt, ANSWER_BYTES, temperature=0, prefix_store=prefixes)
    found = store.counts().tokens_found
    print(f"[{found} of {prompt.shape[1]} bytes were not read again]")
    history.write_bytes(bytes(whole[0].tolist()) + b"\n")
    # The answer is part of the next prompt; its state is kept now, while the user reads.
    model.generate(whole, 0, prefix_store=prefixes)
    return bytes(whole[0, prompt.shape[1] :].tolist()).decode(errors="replace")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("said", help="what you say")
    parser.add_argument("--folder", type=Path, default=Path("my-chat"), help="where the chat is kept")
    parser.add_argument("--model", type=Path, help="a model of bytes that TrellisLM.save wrote")
    given = parser.parse_args(arguments)
    given.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    print(printable(turn(given.folder, model_of(given.folder, given.model), given.said)))


if __name__ == "__main__":
    main()
