"""Hostile names through every entrance: none reaches generated code, a path outside of its folder, or a terminal.

A name is refused, by an error that quotes it on one line, or kept as data.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from pathlib import Path

import pytest
from msgspec.structs import replace

from codegen.errors import TrellisError
from tests.hostile import of_codegen, of_lm, of_serving, of_tuner, of_tuning_db
from tests.hostile.entrance import Entrance
from tests.hostile.names import NAMES
from tuner.report.page import render_page
from tuning_db import RecordError, Store, TuningDatabaseError

ENTRANCES: dict[str, Entrance] = {
    **of_codegen.ENTRANCES,
    **of_tuning_db.ENTRANCES,
    **of_tuner.ENTRANCES,
    **of_lm.ENTRANCES,
    **of_serving.ENTRANCES,
}

REFUSALS = (TrellisError, TuningDatabaseError, ValueError, SystemExit)
"""What a name that is not kept as data may raise; argparse ends the process."""


@pytest.mark.parametrize("entrance", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_a_name_is_refused_or_kept_as_data(entrance: Entrance, given: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_a_page_of_records_shows_names_as_text(given: Path) -> None:
    store, held = Store(given / "user", given / "shipped"), 0
    for field in of_tuner.TEXTS:
        for number, name in enumerate(NAMES.values()):
            with contextlib.suppress(RecordError):
                made = of_tuner.record_with(field, name)
                # One of each, in a page that shows all.
                held += store.commit(made if field == "spec" else replace(made, spec=f"{field} {number}"))
    page = render_page(store, of_tuner.storage(given), None)
    assert held > len(NAMES)
    assert "{{ 7*7 }}" in page
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def refused(entrance: Entrance, name: str, folder: Path) -> str:
    """What is said of a name that is refused; empty if it is kept."""
    try:
        entrance(name, folder)
    except REFUSALS as error:
        return str(error)
    return ""


def shows_safely(text: str, name: str) -> bool:
    """Whether nothing in a text that people read acts on a terminal, or begins a line that nobody wrote.

    A text of several lines may be set in.
    """
    unsafe = [letter for letter in text if not letter.isprintable() and letter not in "\n\t"]
    return not unsafe and ("\n" not in name or re.search(re.escape(name) + "(?! {8})", text) is None)
