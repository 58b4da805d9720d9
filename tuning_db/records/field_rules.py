"""What a field of a record may hold; every rule raises `RecordError` with the field, the value and what was expected.

Records come from files that anyone may have edited, so each length is bounded and each number finite, and the device
key, which becomes a file name, is held to a pattern without separators.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta, timezone

from tuning_db.errors import RecordError

DEVICE_PATTERN = r"[a-z0-9][a-z0-9._-]{0,99}"
NAME_PATTERN = r"[A-Za-z_][A-Za-z0-9_]{0,63}"
DIGEST_PATTERN = r"[A-Za-z0-9][A-Za-z0-9:._+-]{0,127}"
MAX_KEY = 1_000
MAX_TEXT = 4_000
MAX_ENTRIES = 100
MAX_INTEGER = 2**63 - 1

CLOCK_SKEW = timedelta(days=1)
"""How far the clocks of two machines may be apart."""

_DEVICE = re.compile(DEVICE_PATTERN)
_CREATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3}|\.\d{6})?(Z|\+00:00)", re.ASCII)
# Control characters and bidirectional overrides can rewrite a terminal; surrogates cannot be encoded at all.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shortened(text: str, limit: int = MAX_TEXT) -> str:
    """`text` as a record can hold it: unprintable characters escaped, the middle cut out if longer than `limit`.

    Example:
        >>> shortened("ptxas died: " + "x" * 100, limit=30)
        'ptxas died:  [...] xxxxxxxxxxx'
    """
    text = printable(text)
    if len(text) <= limit:
        return text
    mark = " [...] "
    head = (limit - len(mark) + 1) // 2
    tail = limit - len(mark) - head
    return text[:head] + mark + text[len(text) - tail :]


def printable(text: str) -> str:
    """`text` with every character escaped that would rewrite a terminal, or that cannot be encoded."""
    return _UNPRINTABLE.sub(lambda found: ascii(found.group())[1:-1], text)


def one_line(text: str) -> str:
    """`text` as `printable` has it, line ends and tabs escaped too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def utc_now() -> str:
    """This moment as a record's `created`: ISO 8601, UTC, microseconds."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds")


def parse_created(created: str) -> datetime:
    """The moment that a checked `created` names."""
    return datetime.fromisoformat(created.replace("Z", "+00:00"))


def is_future(created: str) -> bool:
    """Whether a checked `created` lies more than `CLOCK_SKEW` ahead of this machine's clock."""
    return parse_created(created) - datetime.now(timezone.utc) > CLOCK_SKEW


def is_device_key(device: object) -> bool:
    """Whether `device` may name a file."""
    return isinstance(device, str) and _DEVICE.fullmatch(device) is not None


def check_device(device: object) -> None:
    """A device key: lower-case letters, digits, `.`, `_`, `-`, at most 100, a letter or digit first."""
    if not is_device_key(device):
        raise RecordError(field="device", value=_clipped(device), expected=f"a key like {DEVICE_PATTERN}")


def check_pattern(field: str, value: object, pattern: str) -> None:
    """Text that matches `pattern` as a whole."""
    if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
        raise RecordError(field=field, value=_clipped(value), expected=f"text like {pattern}")


def check_key(field: str, value: object) -> None:
    """One line of printable text, neither empty nor longer than `MAX_KEY`."""
    check_text(field, value, MAX_KEY)
    if value == "" or "\n" in str(value):
        raise RecordError(field=field, value=_clipped(value), expected="one line of text that is not empty")


def check_text(field: str, value: object, limit: int = MAX_TEXT) -> None:
    """Printable text, newlines and tabs allowed, of at most `limit` characters; `shortened` makes any text fit."""
    if not isinstance(value, str) or len(value) > limit or _UNPRINTABLE.search(value):
        expected = f"printable text of at most {limit} characters (tuning_db.shortened makes one)"
        raise RecordError(field=field, value=_clipped(value), expected=expected)


def check_number(field: str, value: object, *, most: float = math.inf, zero: bool = False) -> None:
    """A finite plain number above zero (or from zero, if `zero`) and up to `most`."""
    # Exact types: numpy's scalars pass isinstance but are not JSON.
    if type(value) is int or type(value) is float:
        bounded = -MAX_INTEGER <= value <= MAX_INTEGER and value <= most
        if bounded and (value > 0 or (zero and value == 0)):
            return
    expected = f"a finite int or float {'from' if zero else 'above'} 0 up to {min(most, MAX_INTEGER):g}"
    raise RecordError(field=field, value=_clipped(value), expected=expected)


def check_count(field: str, value: object, least: int = 0) -> None:
    """A plain integer from `least` to 2^63 - 1."""
    if type(value) is not int or not least <= value <= MAX_INTEGER:
        raise RecordError(field=field, value=_clipped(value), expected=f"an int from {least} to 2^63 - 1")


def check_created(created: object) -> None:
    """A moment in UTC, ISO 8601, for example 2025-01-31T12:00:00Z."""
    expected = "a UTC moment like 2025-01-31T12:00:00Z (tuning_db.utc_now makes one)"
    if not isinstance(created, str) or not _CREATED.fullmatch(created):
        raise RecordError(field="created", value=_clipped(created), expected=expected)
    try:
        parse_created(created)
    except ValueError as error:
        raise RecordError(field="created", value=created, expected=f"{expected}; {error}") from error


def check_toolchain(toolchain: object) -> None:
    """Package names to versions, both one line of text."""
    for package, version in _entries("toolchain", toolchain).items():
        check_key("toolchain package", package)
        check_key(f"toolchain[{package}]", version)


def check_schedule(schedule: object) -> None:
    """Plain data under identifier-like names; whether it suits a backend is for `codegen` to say."""
    for name, value in _entries("schedule", schedule).items():
        check_pattern("schedule field name", name, NAME_PATTERN)
        _check_setting(f"schedule[{name}]", value)


def _check_setting(field: str, value: object) -> None:
    if type(value) is str:
        check_text(field, value, MAX_KEY)
        if "\n" in value:
            raise RecordError(field=field, value=_clipped(value), expected="one line of text")
        return
    small = type(value) is int and -MAX_INTEGER <= value <= MAX_INTEGER
    if not (type(value) is bool or small or (type(value) is float and math.isfinite(value))):
        raise RecordError(field=field, value=_clipped(value), expected="a bool, a finite float, a 64-bit int or text")


def _entries(field: str, value: object) -> dict[object, object]:
    if not isinstance(value, dict) or len(value) > MAX_ENTRIES:
        raise RecordError(field=field, value=_clipped(value), expected=f"a dict of at most {MAX_ENTRIES} entries")
    return value


def _clipped(value: object) -> object:
    if isinstance(value, (bool, float)) or value is None:
        return value
    if isinstance(value, int):
        return value if abs(value) <= 2**64 else "an int beyond 64 bits"
    return shortened(value if isinstance(value, str) else repr(value), 200)
