"""Hostile names through every entrance: none reaches generated code, a path outside of its folder, or a terminal.

A name is refused, by an error that quotes it on one line, or kept as data.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from codegen.errors import TrellisError
from tests.hostile import of_codegen, of_lm, of_tuner, of_tuning_db
from tests.hostile.entrance import Entrance
from tests.hostile.names import NAMES
from tuning_db import TuningDatabaseError

ENTRANCES: dict[str, Entrance] = {
    **of_codegen.ENTRANCES,
    **of_tuning_db.ENTRANCES,
    **of_tuner.ENTRANCES,
    **of_lm.ENTRANCES,
}

REFUSALS = (TrellisError, TuningDatabaseError, ValueError, SystemExit)
"""What a name that is not kept as data may raise; argparse ends the process."""


@pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_a_name_is_refused_or_kept_as_data(
    entrance: Entrance, given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = []
    for number, (taken_for, name) in enumerate(NAMES.items()):
        folder = given / str(number)
        folder.mkdir()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                refusal = refused(entrance, name, folder)
            except Exception as error:
                error.add_note(f"the name is {taken_for}")
                raise
        printed = capsys.readouterr()
        if "\n" in refusal:
            problems.append(f"{taken_for}: a refusal of several lines, {refusal!r}")
        texts = (refusal, printed.out, printed.err, *(str(each.message) for each in caught))
        problems += [f"{taken_for}: {text!r}" for text in texts if not shows_safely(text, name)]
    assert not problems


def refused(entrance: Entrance, name: str, folder: Path) -> str:
    """What is said of a name that is refused; empty if it is kept."""
    try:
        entrance(name, folder)
    except REFUSALS as error:
        return str(error)
    return ""


def shows_safely(text: str, name: str) -> bool:
    """Whether nothing in a text that people read acts on a terminal, or begins a line that nobody wrote."""
    return all(letter.isprintable() or letter in "\n\t" for letter in text) and ("\n" not in name or name not in text)
