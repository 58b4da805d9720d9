"""Engines that go on from states in a store of prefixes: of other engines, of `generate`, of their own."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, RequestOutput
from vllm.config import KVTransferConfig

from tests.vllm.engines import Prompt, alone, engine, finished, greedy, made, make_model, prompts, save
from trellis_ops.errors import ServingError
from trellis_ops.lm.model import TrellisLM
from trellis_ops.serve.store import Disk, PrefixStore, StoreCounts
from trellis_ops.serve.vllm import states
from trellis_ops.serve.vllm.store_metrics import METRIC
from trellis_ops.serve.vllm.stored import CONNECTOR

SEGMENT = 64
MODELS: dict[str, dict[str, Any]] = {
    "TRELLIS": {"chunk_size": 16, "learned_state": True},
    "a rule with states of its own": {"rule": "yaad", "chunk_size": 32},
    "a rule whose preparation carries a state": {"rule": "abc", "chunk_size": None},
}


def options(store: Path, **more: Any) -> dict[str, Any]:
    """Of an engine with a store in a folder."""
    key = store / "key"
    if not key.exists():
        key.write_bytes(secrets.token_bytes(32))
    given = {"key_file": str(key), "folder": str(store / "states"), "tenant": "alice", **more}
    transfer = KVTransferConfig(kv_connector=CONNECTOR, kv_role="kv_both", kv_connector_extra_config=given)
    return {"enable_prefix_caching": True, "block_size": SEGMENT, "kv_transfer_config": transfer}


@contextmanager
def stored(model: Path, folder: Path, **more: Any) -> Iterator[LLM]:
    with engine(model, **options(folder), **more) as llm:
        yield llm


def scheduler(llm: LLM) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def counts(llm: LLM) -> StoreCounts:
    return scheduler(llm).connector.store.counts()


def answers(llm: LLM, given: list[Prompt], tokens: int = 8, **salt: str) -> list[RequestOutput]:
    asked = [{"prompt_token_ids": each, **({"cache_salt": salt["salt"]} if salt else {})} for each in given]
    return llm.generate(asked, greedy(tokens), use_tqdm=False)


def tokens_of(outputs: list[RequestOutput]) -> list[list[int]]:
    return [list(each.outputs[0].token_ids) for each in outputs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.mark.parametrize("name", MODELS)
def test_another_engine_goes_on_from_what_one_has_read(name: str, tmp_path: Path, folder: Path) -> None:
    """Prompts that share 130 tokens; the second engine reads none of the first 128 of them again."""
    model = made(tmp_path / "model", **MODELS[name])
    (prefix,), tails = prompts((2 * SEGMENT + 2,)), prompts((1, 40, 70), seed=2)
    given = [prefix + tail for tail in tails]
    with stored(tmp_path / "model", folder) as llm:
        assert tokens_of(answers(llm, [prefix])) == [alone(model, prefix, 8)]
        assert counts(llm).saves["disk"] == 1
    with stored(tmp_path / "model", folder) as llm:
        outputs = answers(llm, given)
        assert tokens_of(outputs) == [alone(model, each, 8) for each in given]
        assert counts(llm).tokens_found == len(given) * 2 * SEGMENT
        assert [each.num_cached_tokens for each in outputs] == [2 * SEGMENT] * len(given)


def test_what_generate_has_stored_is_found_and_the_other_way_round(tmp_path: Path, folder: Path) -> None:
    model = made(tmp_path / "model")
    one, two = prompts((150, 200))
    chosen = options(folder)
    with engine(tmp_path / "model", **chosen) as llm:
        # Made after the engine, so that the folder is there.
        store = PrefixStore((folder / "key").read_bytes(), [Disk(folder / "states", 2**30)])
        model.generate(torch.tensor([one]), 1, prefix_store=store.tenant("alice"))
        assert tokens_of(answers(llm, [one, two])) == [alone(model, each, 8) for each in (one, two)]
        assert counts(llm).tokens_found == 2 * SEGMENT
    store = PrefixStore((folder / "key").read_bytes(), [Disk(folder / "states", 2**30)])
    found = model.generate(torch.tensor([two]), 8, temperature=0, prefix_store=store.tenant("alice"))
    assert found[0, len(two) :].tolist() == alone(model, two, 8)
    assert store.counts().tokens_found == 3 * SEGMENT


def test_another_tenant_finds_nothing(tmp_path: Path, folder: Path) -> None:
    model = made(tmp_path / "model")
    (prompt,) = prompts((150,))
    with stored(tmp_path / "model", folder) as llm:
        for salt, found in (("bob", 0), ("carol", 0), ("bob", 2 * SEGMENT)):
            scheduler(llm).kv_cache_manager.reset_prefix_cache()
            assert tokens_of(answers(llm, [prompt], salt=salt)) == [alone(model, prompt, 8)]
            assert counts(llm).tokens_found == found


@pytest.mark.parametrize("name", ["S_k", "S_v", "tail"])
def test_a_state_that_is_not_loaded_shows(
    name: str, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(tmp_path / "model")
    (prompt,) = prompts((150,))
    real = states.put
    with stored(tmp_path / "model", folder) as llm:
        answers(llm, [prompt])
        scheduler(llm).kv_cache_manager.reset_prefix_cache()
        without = lambda tensors: {key: each for key, each in tensors.items() if not key.endswith(f".{name}")}  # noqa: E731
        monkeypatch.setattr(states, "put", lambda blocks, tensors, slot: real(blocks, without(tensors), slot))
        assert tokens_of(answers(llm, [prompt], 24)) != [alone(model, prompt)]
        assert counts(llm).tokens_found == 2 * SEGMENT


def test_a_damaged_state_is_a_miss(tmp_path: Path, folder: Path) -> None:
    model = made(tmp_path / "model")
    (prompt,) = prompts((150,))
    with stored(tmp_path / "model", folder) as llm:
        answers(llm, [prompt])
    (path,) = [each for each in (folder / "states").rglob("*") if each.is_file() and each.stat().st_size > 1000]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with stored(tmp_path / "model", folder, disable_log_stats=False) as llm:
        assert tokens_of(answers(llm, [prompt])) == [alone(model, prompt, 8)]
        assert counts(llm).faults == {("disk", "damaged"): 1}
        # A new request, of which vLLM's own cache has nothing.
        scheduler(llm).kv_cache_manager.reset_prefix_cache()
        assert tokens_of(answers(llm, [prompt])) == [alone(model, prompt, 8)]
        found = [each for each in llm.get_metrics() if each.name == METRIC]
        shown = {("misses", "damaged"): 1, ("faults", "disk, damaged"): 1, ("saves", "disk"): 1, ("hits", "disk"): 1}
        shown |= {("tokens", ""): 2 * 150, ("tokens_found", ""): 2 * SEGMENT}
        assert {(each.labels["what"], each.labels["of"]): each.value for each in found} == shown


def test_weights_that_are_loaded_again_find_nothing(tmp_path: Path, folder: Path) -> None:
    """Nor does a step that decodes go on with the old ones; a request that began before keeps nothing."""
    made(tmp_path / "model")
    other = make_model()
    with torch.no_grad():
        for block in other.blocks:
            block.mixer.to_v.weight.mul_(-1.5)
    save(other, tmp_path / "other")
    one, two = prompts((150, 200))
    with stored(tmp_path / "model", folder) as llm:
        answers(llm, [one])
        llm.llm_engine.add_request("two", {"prompt_token_ids": two}, greedy(8))
        assert not list(finished(llm))
        llm.collective_rpc("reload_weights", kwargs={"weights_path": str(tmp_path / "other")})
        before = counts(llm).saves["disk"]
        while llm.llm_engine.has_unfinished_requests():
            llm.llm_engine.step()
        assert counts(llm).saves["disk"] == before
        scheduler(llm).kv_cache_manager.reset_prefix_cache()
        assert tokens_of(answers(llm, [one], 24)) == [alone(other, one)]
        assert counts(llm).tokens_found == 0
        assert llm.llm_engine.engine_core.reset_prefix_cache(reset_connector=True)
        answers(llm, [one])
        assert counts(llm).tokens_found == 0


def test_what_two_tenants_share_ends_a_step(tmp_path: Path, folder: Path) -> None:
    """A state is kept where a request says that nothing private is before it, though one step could read all of it."""
    model = made(tmp_path / "model")
    (prompt,) = prompts((220,))
    with stored(tmp_path / "model", folder, max_num_batched_tokens=512) as llm:
        for salt, found in (("bob", 0), ("carol", SEGMENT)):
            scheduler(llm).kv_cache_manager.reset_prefix_cache()
            said = greedy(8)
            said.extra_args = {"kv_transfer_params": {"public_until": SEGMENT + 3}}
            outputs = llm.generate([{"prompt_token_ids": prompt, "cache_salt": salt}], said, use_tqdm=False)
            assert tokens_of(outputs) == [alone(model, prompt, 8)]
            assert counts(llm).tokens_found == found


def test_what_an_operator_registered_is_found_by_every_tenant(tmp_path: Path, folder: Path) -> None:
    """In a process without vLLM; the server of another tier does not answer."""
    model = made(tmp_path / "model")
    (system,), tails = prompts((2 * SEGMENT + 5,)), prompts((20, 70), seed=2)
    more = {"registered_tokens": 2 * SEGMENT, "memory_bytes": 2**26, "redis": "redis://127.0.0.1:1"}
    chosen = options(folder, **more, quota_bytes=2**26)
    store = PrefixStore((folder / "key").read_bytes(), [Disk(folder / "states", 2**30)])
    assert store.register(model, torch.tensor(system)) == 2 * SEGMENT
    with engine(tmp_path / "model", **chosen) as llm:
        for salt, tail in zip(("bob", "carol"), tails, strict=True):
            assert tokens_of(answers(llm, [system + tail], salt=salt)) == [alone(model, system + tail, 8)]
        assert counts(llm).hits == {"disk": 1, "memory": 1}
        assert counts(llm).tokens_found == 2 * 2 * SEGMENT
        assert set(counts(llm).faults) == {("redis", "unreachable")}


def test_a_request_without_a_tenant_has_no_store(tmp_path: Path, folder: Path) -> None:
    made(tmp_path / "model")
    (prompt,) = prompts((150,))
    with engine(tmp_path / "model", **options(folder, tenant=None)) as llm:
        for _ in range(2):
            answers(llm, [prompt])
            scheduler(llm).kv_cache_manager.reset_prefix_cache()
        assert not counts(llm).saves and counts(llm).tokens_found == 0


def test_preempted_and_aborted_requests(tmp_path: Path, folder: Path) -> None:
    """Requests whose states were loaded and that begin again, beside others that end early."""
    model = made(tmp_path / "model")
    given = dict(zip("abcdef", prompts((70, 100, 130, 150, 180, 200)), strict=True))
    said: dict[str, list[int]] = {}
    with stored(tmp_path / "model", folder, kv_cache_memory_bytes=1 << 20) as llm:
        answers(llm, list(given.values()), 1)
        scheduler(llm).kv_cache_manager.reset_prefix_cache()
        for name, prompt in given.items():
            llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, greedy(30))
        step = 0
        while llm.llm_engine.has_unfinished_requests():
            if step % 9 == 8:
                llm.reset_prefix_cache(reset_running_requests=True)
            if step == 4:
                llm.llm_engine.abort_request(["c"])
            said |= {
                each.request_id: list(each.outputs[0].token_ids) for each in finished(llm) if each.request_id != "c"
            }
            step += 1
        assert counts(llm).tokens_found >= 3 * SEGMENT
        assert not scheduler(llm).connector._asked
    assert said == {name: alone(model, prompt, 30) for name, prompt in given.items() if name != "c"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"block_size": 32}, "--block-size 64"),
        ({"enable_prefix_caching": False}, "--enable-prefix-caching"),
        ({"extra": {"key_file": ""}}, "key_file"),
        ({"extra": {"nosuch": 1}}, "nosuch"),
        ({"extra": {"tenant": 7}}, "must be a text"),
        ({"extra": {"folder": None}}, "no place"),
        ({"extra": {"redis": "redis://127.0.0.1:1"}}, "quota_bytes"),
        ({"tensor_parallel_size": 2}, "serve on one rank"),
        ({"distributed_executor_backend": "mp"}, "must share a process"),
    ],
    ids=json.dumps,
)
def test_what_a_store_cannot_have_is_refused(changes: dict[str, Any], said: str, tmp_path: Path, folder: Path) -> None:
    made(tmp_path / "model")
    extra = changes.pop("extra", {})
    refused = pytest.raises((ServingError, RuntimeError, ValueError), match=said)
    with refused, engine(tmp_path / "model", **(options(folder, **extra) | changes)):
        pass


def test_a_model_alone_has_the_digest_of_the_served_one(tmp_path: Path, folder: Path) -> None:
    model: TrellisLM = made(tmp_path / "model", vocab_size=250)
    (prompt,) = prompts((150,))
    prompt = [each % 250 for each in prompt]
    with stored(tmp_path / "model", folder) as llm:
        answers(llm, [prompt])
    store = PrefixStore((folder / "key").read_bytes(), [Disk(folder / "states", 2**30)])
    model.generate(torch.tensor([prompt]), 1, prefix_store=store.tenant("alice"))
    assert store.counts().tokens_found == 2 * SEGMENT
