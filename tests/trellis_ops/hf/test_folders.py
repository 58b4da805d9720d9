"""Folders: written, loaded, converted both ways, and refused whole where anything is wrong with them."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from codegen.errors import TrellisError
from codegen.rules import NAMED
from tests.trellis_ops.hf.small import CHUNK, VOCAB, alone, config, greedy, pair, tokens
from trellis_ops.hf import TrellisForCausalLM, TrellisHFConfig, TrellisModel
from trellis_ops.hf.__main__ import main
from trellis_ops.hf.folders.convert import from_transformers
from trellis_ops.lm.config import TrellisConfig
from trellis_ops.lm.model import TrellisLM
from trellis_ops.lm.train.data.text import Document
from trellis_ops.lm.train.data.tokenizer import BpeTokenizer
from trellis_ops.lm.train.options.settings import Settings
from trellis_ops.lm.train.saving import checkpoint
from tuning_db import Store

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folder") / "model"
    pair()[1].save_pretrained(path)
    return path


def test_every_field_of_the_configuration_goes_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fields, their defaults and their order of checks are those of `TrellisConfig`."""
    monkeypatch.setattr("trellis_ops.lm.config.default_store", lambda: Store(None, tmp_path))
    changed = config(dim_k=8, step_size="token", decode="exact", phi="softmax", mlp_ratio=2.0, learned_state=True)
    assert TrellisHFConfig.from_trellis(changed).to_trellis() == changed
    assert TrellisHFConfig().to_trellis() == TrellisConfig()
    assert all(hasattr(TrellisHFConfig(), field.name) for field in fields(TrellisConfig))
    named = TrellisHFConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4)
    assert (named.width, named.layers, named.heads) == (64, 3, 4)
    with pytest.warns(UserWarning, match="auto"):
        assert TrellisHFConfig(num_slots="auto").to_dict()["num_slots"] == TrellisConfig().num_slots


@pytest.mark.parametrize("given", [{"phi": "nope"}, {"hidden_size": 33}, {"rule": "nope"}, {"chunk_size": 0}])
def test_a_wrong_configuration_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(TrellisError, match=r"nope|33|chunk_size"):
        TrellisHFConfig(**given)


OWN_LOSS = "sum(where(abs(z - a) <= 1, 0.5 * (z - a) ** 2, abs(z - a) - 0.5))"
OWN = json.dumps({"phi": f"of_a_folder(z, a) = {OWN_LOSS}", "link": "identity", "passes": 1, "step_size": "token"})


@pytest.mark.parametrize("rule", [None, *sorted(set(NAMED) - {"trellis"}), pytest.param(OWN, id="own")])
def test_every_rule_is_saved_loaded_and_generates(rule: str | None, tmp_path: Path) -> None:
    """Through a folder; rows of unequal length too, as `TrellisLM.generate` has them alone."""
    lm, hf = pair(layers=1, rule=rule, chunk_size=CHUNK if rule is None else None, num_slots=4)
    hf.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    rows = [tokens(9), tokens(4, seed=1)]
    batch = torch.stack([rows[0], torch.cat([torch.zeros(5, dtype=torch.int64), rows[1]])])
    mask = torch.tensor([[1] * 9, [0] * 5 + [1] * 4])
    found = greedy(loaded, batch, 4, attention_mask=mask)
    assert found[:, 9:].tolist() == [alone(lm, row, 4) for row in rows]


def test_a_folder_is_loaded_in_several_ways(folder: Path, tmp_path: Path) -> None:
    lm, hf = pair()
    prompt = tokens(1, 9)
    expected = lm(prompt)[0]
    hf.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    for path, others in ((tmp_path, {}), (folder, {"device_map": "cpu"}), (folder, {"device_map": {"": "cpu"}})):
        loaded = AutoModelForCausalLM.from_pretrained(path, **others)
        assert isinstance(loaded, TrellisForCausalLM) and loaded.lm_head.weight is loaded.model.embedding.weight
        torch.testing.assert_close(loaded(prompt).logits, expected)
    body = AutoModel.from_pretrained(folder)
    assert isinstance(body, TrellisModel)
    torch.testing.assert_close(body(prompt, use_cache=False)[0], hf.model(prompt)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"step_size": "token", "init_decay": 0.999}, "to_decay"),
        ({"rule": "kda", "chunk_size": None, "init_decay": 0.999}, "made.dt"),
    ],
    ids=["trellis", "kda"],
)
@torch.no_grad()
def test_gates_are_float32_in_half_precision(
    changes: dict[str, Any], gate: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """A forget gate near 1 is rounded to another one; users of fla's models in bfloat16 have lost theirs so."""
    _, hf = pair(layers=1, **changes)
    hf.save_pretrained(tmp_path / "wide")
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "wide", dtype=dtype)
    gates = {id(each) for part in half.model.blocks[0].mixer.gates() for each in of_part(part)}
    assert {weight.dtype for weight in half.parameters() if id(weight) in gates} == {torch.float32}
    assert {weight.dtype for weight in half.parameters() if id(weight) not in gates} == {dtype}
    raw = [gate_of(each, gate) for each in (copy.deepcopy(hf).double(), half, copy.deepcopy(hf).to(dtype))]
    assert (raw[1] - raw[0]).norm() < 0.3 * (raw[2] - raw[0]).norm()
    half.save_pretrained(tmp_path / "half")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert [each.dtype for each in again.parameters()] == [each.dtype for each in half.parameters()]
    assert torch.equal(again(tokens(1, 9)).logits, half(tokens(1, 9)).logits)
    assert from_transformers(again)(tokens(1, 9))[0].dtype == dtype


def of_part(part: torch.nn.Module | torch.nn.Parameter) -> list[torch.nn.Parameter]:
    return [part] if isinstance(part, torch.nn.Parameter) else [*part.parameters()]


def gate_of(hf: TrellisForCausalLM, name: str) -> torch.Tensor:
    """What the module of a gate makes of some tokens."""
    found: list[torch.Tensor] = []
    module = hf.model.blocks[0].mixer.get_submodule(name)
    handle = module.register_forward_hook(lambda module, inputs, output: found.append(output))
    hf(tokens(1, 24))
    handle.remove()
    return found[0].double()


def test_blocks_on_the_disk_generate(folder: Path, tmp_path: Path) -> None:
    """accelerate loads them for each call, so that every weight is reached through a forward that it can hook."""
    lm, _ = pair()
    places = dict.fromkeys(("model.embedding", "lm_head", "model.norm", "model.blocks.0"), "cpu")
    places["model.blocks.1"] = "disk"
    loaded = AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=tmp_path)
    assert any(weight.device.type == "meta" for weight in loaded.parameters())
    assert greedy(loaded, tokens(1, 9), 4)[0, 9:].tolist() == alone(lm, tokens(9), 4)


def test_a_program_without_this_package_imported_loads_it(folder: Path, tmp_path: Path) -> None:
    program = f"""
import sys
from transformers import AutoModelForCausalLM
assert "trellis_ops" not in sys.modules
model = AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
model.save_pretrained({str(tmp_path / "again")!r})
print(type(model).__module__, type(model.config).__module__, sum(p.numel() for p in model.parameters()))
"""
    environment = {"HF_MODULES_CACHE": str(tmp_path / "modules"), "PYTHONPATH": ":".join(filter(None, sys.path))}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    count = sum(weight.numel() for weight in pair()[1].parameters())
    assert done.stdout.split() == ["trellis_ops.hf.modeling", "trellis_ops.hf.configuration", str(count)], done.stderr
    names = [sorted(path.name for path in each.iterdir()) for each in (folder, tmp_path / "again")]
    assert names[0] == names[1] and "modeling_trellis.py" in names[0]
    assert json.loads((folder / "config.json").read_text()) == json.loads((tmp_path / "again/config.json").read_text())


def changed_config(path: Path, **changes: Any) -> None:
    file = path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def changed_weights(path: Path, change: Any) -> None:
    file = path / "model.safetensors"
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def in_shards(path: Path, cut: str, size: int) -> None:
    """The folder with its weights in several files, one of which is cut short."""
    (path / "model.safetensors").unlink()
    pair()[1].save_pretrained(path, max_shard_size="20KB")
    (damaged,) = path.glob(cut)
    os.truncate(damaged, size)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: os.truncate(path / "model.safetensors", 9000), "damaged"),
        (lambda path: changed_weights(path, lambda each: each.pop("model.blocks.1.mixer.conv_q")), r"missing.*conv_q"),
        (lambda path: changed_weights(path, lambda each: each.update(other=torch.ones(1))), r"unexpected.*other"),
        (lambda path: changed_config(path, num_slots=16), r"mismatched|size|shape"),
        (lambda path: changed_config(path, num_hidden_layers=3), r"missing.*blocks.2"),
        (lambda path: changed_config(path, trellis_format=2), "trellis_format is 2"),
        (lambda path: (path / "config.json").write_text('{"model_type": "trellis"}'), "has no trellis_format"),
        (lambda path: changed_config(path, model_type="llama"), "llama"),
        (lambda path: changed_config(path, phi="nope"), "nope"),
        (lambda path: (path / "config.json").write_text("{"), "config"),
        (lambda path: (path / "model.safetensors").unlink(), "safetensors"),
        (lambda path: os.truncate(path / "generation_config.json", 9), "generation_config.json is damaged"),
        (lambda path: in_shards(path, "model.safetensors.index.json", 99), "damaged"),
        (lambda path: in_shards(path, "model-00002-of-*", 3000), "damaged"),
    ],
    ids=[
        *("cut", "missing", "unexpected", "shape", "layers", "format", "no format", "type", "map", "json", "none"),
        *("generation", "index", "shard"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(damage: Any, reason: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    damage(path)
    with pytest.raises((TrellisError, OSError, RuntimeError), match=reason):
        TrellisForCausalLM.from_pretrained(path)


def test_models_are_converted_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lm, _ = pair(vocab_size=256)
    lm.save(tmp_path / "model.pt")
    main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "folder")])
    assert "with its tokenizer" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    assert (hf.config.pad_token_id, hf.config.eos_token_id) == (0, 0)
    prompts = tokenizer(["Slots", "A chunk"], return_tensors="pt", padding=True)
    found = greedy(hf, prompts["input_ids"], 5, attention_mask=prompts["attention_mask"])
    expected = [alone(lm, torch.tensor(list(text)), 5) for text in (b"Slots", b"A chunk")]
    assert found[:, 7:].tolist() == expected
    main(["convert", str(tmp_path / "folder"), str(tmp_path / "back.pt")])
    back = TrellisLM.load(tmp_path / "back.pt")
    assert back.config == lm.config
    assert all(torch.equal(weight, back.state_dict()[name]) for name, weight in lm.state_dict().items())
    main(["convert", str(tmp_path / "model.pt"), str(tmp_path / "half"), "--dtype", "bfloat16"])
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    assert half.dtype == torch.bfloat16 and half.model.blocks[0].mixer.to_decay.bias.dtype == torch.float32
    for arguments, reason in (
        ([tmp_path / "model.pt", tmp_path / "folder"], "something stands there"),
        ([tmp_path / "none.pt", tmp_path / "other"], "none.pt"),
        ([tmp_path / "folder/config.json", tmp_path / "other"], "no model"),
    ):
        with pytest.raises(SystemExit, match=reason):
            main(["convert", *map(str, arguments)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.pt", "folder", "half", "model.pt"]


def test_a_checkpoint_of_training_brings_its_tokenizer(tmp_path: Path) -> None:
    trained = BpeTokenizer.train([Document("text", b"Slots of a memory forget. " * 9)], 270)
    lm, _ = pair(vocab_size=trained.vocab_size)
    plain = {"config": lm.config.to_dict(), "settings": asdict(Settings()), "tokenizer": trained.to_json(), "text": ""}
    groups = {"weights": lm.state_dict(), "optimizer": {}, "carried": {}, "random": checkpoint.random_states()}
    checkpoint.save(checkpoint.Checkpoint(step=0, seconds=0.0, **plain, **groups), tmp_path / "checkpoint.safetensors")
    main(["convert", str(tmp_path / "checkpoint.safetensors"), str(tmp_path / "folder")])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    hf = AutoModelForCausalLM.from_pretrained(tmp_path / "folder")
    prompts = tokenizer(["Slots forget", "memory"], return_tensors="pt", padding=True)
    assert prompts["input_ids"][1, 0] == trained.vocab_size and hf.config.pad_token_id is None
    found = greedy(hf, prompts["input_ids"], 4, attention_mask=prompts["attention_mask"])[:, -4:].tolist()
    assert found == [alone(lm, trained.encode(text).long(), 4) for text in (b"Slots forget", b"memory")]


def test_an_output_map_of_its_own_is_no_trellis_lm() -> None:
    hf = TrellisForCausalLM(TrellisHFConfig.from_trellis(config(), tie_word_embeddings=False))
    with pytest.raises(TrellisError, match="tie_word_embeddings"):
        from_transformers(hf)


def test_an_embedding_grows(tmp_path: Path) -> None:
    _, hf = pair()
    hf.resize_token_embeddings(VOCAB + 6)
    assert hf(tokens(1, 4)).logits.shape == (1, 4, VOCAB + 6)
    hf.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).vocab_size == VOCAB + 6
    assert from_transformers(TrellisForCausalLM.from_pretrained(tmp_path)).config.vocab_size == VOCAB + 6
