"""Masks and offsets that do not describe the tokens of a call are refused by name, before anything runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from codegen.errors import DtypeError, SequenceError, ShapeError, SizeError
from tests.trellis_ops.lm.sequences.models import model_of, some_tokens
from trellis_ops.errors import MaskError

pytestmark = pytest.mark.usefixtures("eager")

ONES = [1, 1, 1, 1]


def offsets(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("options", "error", "part"),
    [
        ({"attention_mask": torch.tensor([ONES, [1, 0, 1, 1]])}, MaskError, "a hole in row 1"),
        ({"attention_mask": torch.tensor([[0, 1, 0, 1], ONES])}, MaskError, "a hole in row 0"),
        ({"attention_mask": torch.tensor([ONES, [0, 0, 0, 0]])}, MaskError, "no token in row 1"),
        ({"attention_mask": torch.tensor([ONES, [1, 1, 2, 0]])}, MaskError, r"holds 2 at \(1, 2\)"),
        ({"attention_mask": torch.tensor([ONES, [-1, 1, 1, 0]])}, MaskError, r"holds -1 at \(1, 0\)"),
        ({"attention_mask": torch.ones(2, 4)}, DtypeError, "attention_mask has dtype torch.float32"),
        ({"attention_mask": torch.ones(2, 5, dtype=torch.int64)}, ShapeError, r"attention_mask has shape \[2, 5\]"),
        ({"attention_mask": torch.ones(4, dtype=torch.int64)}, ShapeError, r"expected \[2, 4\]"),
        ({"attention_mask": [ONES, ONES]}, TypeError, "attention_mask is .*must be a torch.Tensor"),
        ({"cu_seqlens": offsets(0, 4)}, SequenceError, "with a batch: B = 2"),
        ({"cu_seqlens": offsets(0, 4), "attention_mask": torch.ones(2, 4).bool()}, MaskError, "beside cu_seqlens"),
        ({"logits_to_keep": -1}, SizeError, "logits_to_keep=-1"),
        ({"logits_to_keep": 1.0}, SizeError, "logits_to_keep=1.0"),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_masks_and_offsets_beside_rows_are_refused(options: dict[str, Any], error: type[Exception], part: str) -> None:
    model = model_of("chunked")
    with pytest.raises(error, match=part):
        model(some_tokens(model, 2, 4), **options)
    if "attention_mask" in options and "cu_seqlens" not in options:
        with pytest.raises(error, match=part):
            model.stream(some_tokens(model, 2, 4), 3, **options)


@pytest.mark.parametrize(
    ("given", "error", "part"),
    [
        (offsets(0, 3), SequenceError, "does not end at T = 4: 3"),
        (offsets(1, 4), SequenceError, "does not start at 0: 1"),
        (offsets(0, 3, 2, 4), SequenceError, "negative sequence: 3 to 2"),
        (offsets(0), SequenceError, "wrong shape"),
        (offsets(0, 4)[None], SequenceError, "wrong shape"),
        (torch.tensor([0.0, 4.0]), DtypeError, "cu_seqlens has dtype torch.float32"),
        ([0, 4], TypeError, "cu_seqlens"),
    ],
)
def test_offsets_that_do_not_lead_to_the_end_are_refused(given: Any, error: type[Exception], part: str) -> None:
    model = model_of("chunked")
    for return_state in (False, True):
        with pytest.raises(error, match=part):
            model(some_tokens(model, 1, 4), cu_seqlens=given, return_state=return_state)


def test_a_state_has_a_row_for_each_sequence() -> None:
    model = model_of("chunked")
    with pytest.raises(ShapeError, match=r"layers\[0\].S_k has shape \[1, .*expected \[2, "):
        model(some_tokens(model, 1, 4), model.first_state(1), cu_seqlens=offsets(0, 2, 4))
