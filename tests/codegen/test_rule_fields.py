"""What a rule refuses: the error names the field, its value, and what it cannot stand beside."""

from __future__ import annotations

import pytest

from codegen.errors import NumberTypeError, RuleError, SizeError, UnknownMapError
from codegen.rule import CHOICES, LONGEST_WINDOW, SOLVE, Rule

ONE_PASS = {"passes": 1, "link": "identity"}
READER = {**ONE_PASS, "step_size": "reader_writer", "decay": "none"}


@pytest.mark.parametrize("value", ["nothing", None, 7, 1.0, "True", ["head"]], ids=repr)
@pytest.mark.parametrize("field", CHOICES)
def test_a_value_outside_the_choices(field: str, value: object) -> None:
    with pytest.raises(RuleError, match=f"^rule field {field}=.*choose one of") as caught:
        Rule(**{field: value})
    assert (caught.value.field, caught.value.value) == (field, value)


@pytest.mark.parametrize(("field", "value"), [("passes", True), ("erase", 1), ("momentum", 0), ("transposed", 1)])
def test_a_number_that_equals_a_choice_is_none(field: str, value: object) -> None:
    with pytest.raises(RuleError, match=f"^rule field {field}="):
        Rule(**ONE_PASS | {field: value})


@pytest.mark.parametrize(
    ("fields", "refused", "reason"),
    [
        ({"probe": "own"}, "probe", "passes=2"),
        ({"erase": True}, "erase", "passes=2"),
        ({"normaliser": "read"}, "normaliser", "passes=2"),
        ({"transposed": True}, "transposed", "passes=2"),
        ({"decay": "channel"}, "decay", "two passes"),
        ({"passes": 1, "link": "softmax"}, "link", "passes=1"),
        ({"passes": 1, "link": SOLVE}, "link", "passes=1"),
        ({"link": SOLVE}, "phi", "solve"),
        ({"link": SOLVE, "phi": "hebbian", "decay": "slot"}, "decay", "solve"),
        (READER | {"decay": "scalar"}, "decay", "reader_writer"),
        (READER | {"decay": "slot"}, "decay", "reader_writer"),
        (READER | {"momentum": True}, "momentum", "reader_writer"),
        (READER | {"window": 2}, "window", "reader_writer"),
        (READER | {"erase": True}, "erase", "reader_writer"),
        (READER | {"view": "softmax"}, "view", "reader_writer"),
        (READER | {"normaliser": "both"}, "normaliser", "reader_writer"),
        ({"decay": "none", "decay_first": True}, "decay_first", "no decay"),
        (ONE_PASS | {"normaliser": "read", "momentum": True}, "momentum", "normaliser"),
        (ONE_PASS | {"normaliser": "read", "window": 2}, "window", "normaliser"),
        (ONE_PASS | {"normaliser": "both", "erase": True}, "erase", "normaliser"),
        (ONE_PASS | {"normaliser": "both", "transposed": True}, "transposed", "normaliser"),
        (ONE_PASS | {"normaliser": "both", "decay": "slot"}, "decay", "normaliser"),
        (ONE_PASS | {"normaliser": "both", "view": "softmax"}, "normaliser", "view"),
        ({"view_gradient": True}, "view_gradient", "no view"),
        (ONE_PASS | {"view": "softmax", "erase": True}, "view", "erase"),
        ({"view": "softmax", "window": 2}, "view", "window"),
        ({"view": "softmax", "link": SOLVE, "phi": "hebbian"}, "view", "solve"),
    ],
    ids=str,
)
def test_fields_that_exclude_one_another(fields: dict[str, object], refused: str, reason: str) -> None:
    with pytest.raises(RuleError, match=f"^rule field {refused}=") as caught:
        Rule(**fields)
    assert caught.value.field == refused
    assert reason in str(caught.value)


@pytest.mark.parametrize("value", [0, -1, LONGEST_WINDOW + 1])
def test_a_window_out_of_range(value: int) -> None:
    with pytest.raises(SizeError, match="window="):
        Rule(window=value)


@pytest.mark.parametrize("value", [2.0, True, "2", None], ids=repr)
def test_a_window_that_is_no_int(value: object) -> None:
    with pytest.raises(NumberTypeError, match="window="):
        Rule(window=value)


@pytest.mark.parametrize("field", ["link", "out", "view"])
def test_a_loss_that_is_to_read(field: str) -> None:
    with pytest.raises(UnknownMapError, match=f"^{field}='hebbian'"):
        Rule(**{field: "hebbian"})


@pytest.mark.parametrize("field", ["phi", "out", "view"])
def test_a_solve_that_is_no_link(field: str) -> None:
    with pytest.raises(UnknownMapError, match=f"^{field}='solve'"):
        Rule(**{field: SOLVE})


def test_one_pass_has_no_link_of_trellis() -> None:
    assert Rule(passes=1) == Rule(passes=1, link="identity")


@pytest.mark.parametrize(
    ("fields", "is_trellis"),
    [
        ({}, True),
        ({"phi": "hebbian", "step_size": "token"}, True),
        ({"phi": "layer_norm_gain"}, False),
        ({"link": SOLVE, "phi": "hebbian"}, False),
        ({"read": "before"}, False),
        ({"step_size": "reader_writer", "decay": "none"}, False),
    ],
    ids=str,
)
def test_which_rules_the_operators_of_trellis_compute(fields: dict[str, object], is_trellis: bool) -> None:
    assert Rule(**fields).is_trellis is is_trellis
    assert Rule(**fields).key().startswith("trellis(" if is_trellis else "rule(")
