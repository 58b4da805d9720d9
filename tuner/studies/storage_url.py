"""The URL of a study storage: taken from its user, escaped where it names a file, shown without a password."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from tuner.errors import StudyError
from tuner.studies.storage_variable import STORAGE_VARIABLE
from tuning_db.masking import MASK, masked, masked_url

_FILE = "sqlite"
_DIVIDERS = re.compile(r"[/?#:@&;=\s]")
_LEAST_SECRET = 4  # Shorter ones would be masked in the middle of words, which tells more than it hides.
_ENCODE = "a password with / @ : ? # or % in it is percent-encoded, as in %40 for @"


def shown(url: str) -> str:
    """`url` to be printed and stored: a password in it is masked, however malformed it is."""
    return masked_url(url)


def file_url(path: Path) -> str:
    """The URL of the SQLite file at `path`, whatever characters are in it.

    Raises:
        StudyError: the path cannot be written as one.
    """
    url = URL.create(_FILE, database=str(path)).render_as_string(hide_password=False)
    # SQLAlchemy before 2.1 does not escape.
    if make_url(url).database != str(path):
        reason = "its path holds characters that this version of SQLAlchemy does not escape"
        raise StudyError(url=url, reason=reason, advice="install SQLAlchemy 2.1, or set TRELLIS_OPS_CACHE")
    return url


def parsed_url(url: str) -> URL:
    """`url` as SQLAlchemy reads it.

    Raises:
        StudyError: it is none, or a part of the password would be taken for the host or the name of the database.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # What they say may quote the password.
        raise StudyError(url=shown(url), reason="it is no URL of a database", advice=_advice()) from None
    places = [parsed.host or ""]
    if parsed.get_backend_name() != _FILE:
        places.append(parsed.database or "")
    if any("@" in place for place in places):
        raise StudyError(url=shown(url), reason="it is ambiguous: more than one @ divides it", advice=_advice())
    return parsed


def without_secrets(text: str, url: str) -> str:
    """`text`, which something said about the storage at `url`, without a password of that URL or of another."""
    text = masked(text.replace(url, shown(url)))
    for secret in sorted(_secrets(url), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def _secrets(url: str) -> set[str]:
    """The passwords in `url`, as written and as meant, and the pieces that a parser may have made of them."""
    pieces = set(_DIVIDERS.split(url)) - set(_DIVIDERS.split(shown(url)))
    try:
        pieces.add(make_url(url).password or "")
    except (ArgumentError, ValueError):
        pieces.add("")
    return {each for piece in pieces for each in (piece, unquote(piece)) if len(each) >= _LEAST_SECRET}


def _advice() -> str:
    return f"write it as postgresql://user:password@host/name, where {_ENCODE}; or name it in {STORAGE_VARIABLE}"
