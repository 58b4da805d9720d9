"""One server with the API of OpenAI: completions, a stream of them, a chat, and metrics."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.vllm.engines import alone, made
from trellis_ops.lm.model import TrellisLM

SECONDS_TO_START = 400
PROMPT = list(b"A memory of fixed size")


@pytest.fixture(scope="module")
def model_and_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TrellisLM, str]]:
    folder = tmp_path_factory.mktemp("checkpoint")
    model = made(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--served-model-name", "small", "--max-model-len", "256", "--enforce-eager", "--host", "127.0.0.1"]
    command += ["--kv-cache-memory-bytes", str(8 << 20), "--max-num-seqs", "8", "--dtype", "float32"]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    log = folder / "log.txt"
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(server, f"{address}/health", log)
            yield model, address
        finally:
            server.terminate()


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            urlopen(address).close()
        except (URLError, ConnectionError):
            assert server.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.5)
        else:
            return


def _asked(address: str, path: str, **content: Any) -> bytes:
    data = json.dumps({"model": "small", "temperature": 0, "max_tokens": 12, "ignore_eos": True, **content}).encode()
    with urlopen(Request(f"{address}/v1/{path}", data, {"Content-Type": "application/json"})) as answer:
        found: bytes = answer.read()
    return found


def test_completions_streams_chats_and_metrics(model_and_address: tuple[TrellisLM, str]):
    model, address = model_and_address
    whole = json.loads(_asked(address, "completions", prompt=PROMPT, return_token_ids=True))["choices"][0]
    assert whole["token_ids"] == alone(model, PROMPT, 12)
    lines = _asked(address, "completions", prompt=PROMPT, stream=True).decode().splitlines()
    pieces = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    assert len(pieces) > 1
    assert "".join(piece["choices"][0]["text"] for piece in pieces) == whole["text"]
    messages = [{"role": "user", "content": "Slots?"}]
    chat = json.loads(_asked(address, "chat/completions", messages=messages, return_token_ids=True))
    assert chat["prompt_token_ids"] == list(b"user: Slots?\n")
    assert chat["choices"][0]["token_ids"] == alone(model, list(b"user: Slots?\n"), 12)
    with urlopen(f"{address}/metrics") as answer:
        assert b"vllm:generation_tokens_total" in answer.read()
