"""lm-eval-harness on a local folder: both its paddings give what each request gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from tests.trellis_ops.hf.small import CHUNK, alone, pair
from trellis_ops.hf.tokenizer import byte_tokenizer

REQUESTS = [("Slots of a memory", " forget"), ("A", " chunk ends"), ("", "Tokens"), ("The gate", " opens.")]


@pytest.fixture(scope="module", params=[None, "gated_deltanet"])
def rule(request: pytest.FixtureRequest) -> str | None:
    found: str | None = request.param
    return found


@pytest.fixture(scope="module")
def models(rule: str | None) -> Any:
    return pair(vocab_size=256, rule=rule, chunk_size=CHUNK if rule is None else None)


@pytest.fixture(scope="module")
def harness(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("harness")
    models[1].save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return HFLM(str(folder), device="cpu", batch_size=len(REQUESTS), dtype="float32")


def instance(kind: str, arguments: tuple[Any, ...]) -> Instance:
    return Instance(kind, {}, arguments, 0, ("task", 0, 1))


@torch.no_grad()
def test_log_likelihoods_padded_on_the_right_without_a_mask(models: Any, harness: Any) -> None:
    lm, _ = models
    found = harness.loglikelihood([instance("loglikelihood", each) for each in REQUESTS], disable_tqdm=True)
    for (context, continuation), (value, is_greedy) in zip(REQUESTS, found, strict=True):
        start = context.encode() or b"\0"
        text = torch.tensor([list(start + continuation.encode())])
        logits = lm(text)[0][0, len(start) - 1 : -1].log_softmax(-1)
        rest = text[0, len(start) :]
        assert value == pytest.approx(logits.gather(-1, rest[:, None]).sum().item(), rel=1e-4)
        assert is_greedy == bool((logits.argmax(-1) == rest).all())


def test_texts_generated_from_prompts_padded_on_the_left_with_a_mask(models: Any, harness: Any) -> None:
    lm, _ = models
    contexts = [context for context, _ in REQUESTS if context]
    options = {"until": [], "max_gen_toks": 6, "do_sample": False}
    requests = [instance("generate_until", (each, options)) for each in contexts]
    found = harness.generate_until(requests, disable_tqdm=True)
    tokenizer = byte_tokenizer()
    expected = [alone(lm, torch.tensor(list(each.encode())), 6) for each in contexts]
    assert found == [tokenizer.decode(each, skip_special_tokens=True) for each in expected]
