"""One server with the API of OpenAI: completions, a stream of them, a chat, and metrics."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from tests.vllm.engines import alone, made
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.vllm.store_metrics import METRIC
from trellis_ops.serve.vllm.stored import CONNECTOR

SECONDS_TO_START = 400
PROMPT = list(b"A memory of fixed size")


@contextmanager
def server(folder: Path, *options: str, **variables: str) -> Iterator[str]:
    """The address of a server of the model in a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--port", str(port)]
    command += ["--served-model-name", "small", "--max-model-len", "256", "--enforce-eager", "--host", "127.0.0.1"]
    command += ["--kv-cache-memory-bytes", str(8 << 20), "--max-num-seqs", "8", "--dtype", "float32", *options]
    environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    log = folder / "log.txt"
    with log.open("w") as file:
        started = subprocess.Popen(command, env=environment | variables, stdout=file, stderr=file)
    with started:
        try:
            address = f"http://127.0.0.1:{port}"
            _wait(started, f"{address}/health", log)
            yield address
        finally:
            started.terminate()


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


def test_completions_streams_chats_and_metrics(tmp_path: Path):
    model = made(tmp_path)
    with server(tmp_path) as address:
        check_answers(model, address)


def check_answers(model: TrellisLM, address: str) -> None:
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


def with_store(folder: Path) -> list[str]:
    (folder / "key").write_bytes(secrets.token_bytes(32))
    extra = {"key_file": str(folder / "key"), "memory_bytes": 1 << 26}
    store = {"kv_connector": CONNECTOR, "kv_role": "kv_both", "kv_connector_extra_config": extra}
    return ["--enable-prefix-caching", "--block-size", "64", "--kv-transfer-config", json.dumps(store)]


def test_a_store_of_two_tenants_and_its_counts_among_the_metrics(tmp_path: Path):
    model, prompt = made(tmp_path), 4 * PROMPT
    # vLLM would otherwise put a model on a CPU into a process without its scheduler.
    with server(tmp_path, *with_store(tmp_path), VLLM_ENABLE_V1_MULTIPROCESSING="0") as address:
        for salt in ("alice", "bob"):
            said = json.loads(_asked(address, "completions", prompt=prompt, return_token_ids=True, cache_salt=salt))
            assert said["choices"][0]["token_ids"] == alone(model, prompt, 12)
        with urlopen(f"{address}/metrics") as answer:
            lines = [line for line in answer.read().decode().splitlines() if line.startswith(f"{METRIC}_total{{")]
    counts = {tuple(re.search(rf'{label}="(.*?)"', line)[1] for label in ("what", "of")): line for line in lines}
    assert {key: float(line.rpartition(" ")[2]) for key, line in counts.items()} == {
        ("misses", "unknown"): 2,
        ("saves", "memory"): 2,
        ("tokens", ""): 2 * len(prompt),
    }


def test_a_store_that_another_process_than_the_models_would_ask_is_refused(tmp_path: Path):
    """As vLLM has it on a CPU by default; the store would never have a state."""
    made(tmp_path)
    with pytest.raises(AssertionError), server(tmp_path, *with_store(tmp_path)):
        pass
    assert "the scheduler and the model must share a process" in (tmp_path / "log.txt").read_text()
