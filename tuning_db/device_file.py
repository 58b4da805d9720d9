"""One device's JSON file: bytes to typed records and back. Reading never raises; it says what was wrong instead."""

from __future__ import annotations

import operator
from pathlib import Path

import msgspec

from tuning_db.errors import DatabaseFullError, RecordError
from tuning_db.records.field_rules import shortened
from tuning_db.records.recommendation import Recommendation
from tuning_db.records.record import SCHEMA, Record
from tuning_db.regular_file import UNREADABLE, read_regular

MAX_BYTES = 16 * 2**20
MAX_RECORDS = 20_000


class DeviceFile(msgspec.Struct, frozen=True):
    """What is known of one device, in one layer."""

    records: tuple[Record, ...] = ()
    recommendation: Recommendation | None = None


class Reading(msgspec.Struct, frozen=True):
    """What came of reading a file.

    Attributes:
        content: what could be read; empty if nothing could.
        missing: there is no such file.
        fault: why the whole file could not be used; empty if it could.
        left_out: why single entries could not be used, one text each.
        secrets: how many entries hold a password, which `content` does not.
        data: the bytes read.
    """

    content: DeviceFile = msgspec.field(default_factory=DeviceFile)
    missing: bool = False
    fault: str = ""
    left_out: tuple[str, ...] = ()
    secrets: int = 0
    data: bytes = b""


class _Header(msgspec.Struct):
    schema: int


class _Body(msgspec.Struct, forbid_unknown_fields=True):
    schema: int
    device: str
    records: list[msgspec.Raw]
    recommendation: msgspec.Raw = msgspec.Raw(b"null")


class _Written(msgspec.Struct):
    schema: int
    device: str
    records: list[Record]
    recommendation: Recommendation | None


def read(path: Path, device: str, *, own: bool = False) -> Reading:
    """The file at `path`, which should hold the records of `device`; if it must be one's `own`, no other user's."""
    try:
        data = read_regular(path, MAX_BYTES, own=own)
    except FileNotFoundError:
        return Reading(missing=True)
    except (OSError, ValueError) as error:
        return Reading(fault=f"it cannot be read ({_said(error)})")
    return parse(data, device)


def parse(data: bytes, device: str) -> Reading:
    """The content of a file, given its bytes."""
    if len(data) > MAX_BYTES:
        return Reading(fault=f"it is larger than {MAX_BYTES} bytes", data=data)
    try:
        schema = msgspec.json.decode(data, type=_Header).schema
        if schema != SCHEMA:
            return Reading(fault=f"it has schema {_said(schema)}, this version reads schema {SCHEMA}", data=data)
        body = msgspec.json.decode(data, type=_Body)
    except UNREADABLE as error:
        return Reading(fault=f"it is not a file of this database ({_said(error)})", data=data)
    if body.device != device:
        return Reading(fault=f"it says device {_said(body.device)!r}, its name says {device!r}", data=data)
    if len(body.records) > MAX_RECORDS:
        return Reading(fault=f"it has more than {MAX_RECORDS} records", data=data)
    return _entries(body, data)


def encode(path: Path, device: str, content: DeviceFile) -> bytes:
    """The bytes to write at `path`: indented, records sorted by identity, so that a diff shows what changed.

    Raises:
        RecordError: a record that would not be read back, or not as it is.
        DatabaseFullError: more than `MAX_RECORDS` records or `MAX_BYTES` bytes.
    """
    content = without_secrets(content)
    records = sorted(content.records, key=lambda record: (record.identity(), record.recency()))
    written = _Written(SCHEMA, device, records, content.recommendation)
    data = msgspec.json.format(msgspec.json.encode(written, order="deterministic"), indent=2) + b"\n"
    reading = parse(data, device)
    if reading.fault:
        raise DatabaseFullError(path=path, reason=reading.fault)
    if reading.left_out or reading.content != DeviceFile(tuple(records), content.recommendation):
        why = reading.left_out[0] if reading.left_out else "it was changed after it was made"
        raise RecordError(field="record", value=why, expected="records that are read back as they were written")
    return data


def _entries(body: _Body, data: bytes) -> Reading:
    records: list[Record] = []
    left_out: list[str] = []
    for index, raw in enumerate(body.records):
        try:
            record = msgspec.json.decode(raw, type=Record)
            if record.device != body.device:
                raise RecordError(field="device", value=record.device, expected=repr(body.device))
        except UNREADABLE as error:
            left_out.append(f"record {index}: {_said(error)}")
        else:
            records.append(record)
    recommendation: Recommendation | None = None
    try:
        recommendation = msgspec.json.decode(body.recommendation, type=Recommendation | None)
        if recommendation is not None and recommendation.device != body.device:
            wrong, recommendation = recommendation.device, None
            raise RecordError(field="device", value=wrong, expected=repr(body.device))
    except UNREADABLE as error:
        left_out.append(f"recommendation: {_said(error)}")
    content = DeviceFile(tuple(records), recommendation)
    clean = without_secrets(content)
    secrets = sum(map(operator.is_not, clean.records, content.records))
    secrets += clean.recommendation is not content.recommendation
    return Reading(clean, left_out=tuple(left_out), secrets=secrets, data=data)


def without_secrets(content: DeviceFile) -> DeviceFile:
    """`content` without the passwords that records of older versions hold."""
    recommendation = None if content.recommendation is None else content.recommendation.without_secrets()
    return DeviceFile(tuple(map(Record.without_secrets, content.records)), recommendation)


def _said(cause: object) -> str:
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return " ".join(shortened(text, 300).split())
