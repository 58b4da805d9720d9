"""What is remembered of one candidate: what it was for, how it ran, who measured it."""

from __future__ import annotations

from datetime import datetime
from enum import Enum
from typing import NamedTuple

import msgspec

from tuning_db.errors import RecordError
from tuning_db.masking import masked
from tuning_db.records.field_rules import (
    DIGEST_PATTERN,
    NAME_PATTERN,
    check_count,
    check_created,
    check_device,
    check_key,
    check_number,
    check_pattern,
    check_schedule,
    check_text,
    check_toolchain,
    is_future,
    parse_created,
    shortened,
)

SCHEMA = 1
"""Version of the file format; a file of another version is not read."""


class Outcome(str, Enum):
    """How a candidate ended; only `ok` can win. `killed` alone says nothing about the candidate."""

    ok = "ok"
    illegal = "illegal"
    compile_error = "compile_error"
    launch_error = "launch_error"
    timeout = "timeout"
    crashed = "crashed"
    out_of_memory = "out_of_memory"
    killed = "killed"
    wrong_answer = "wrong_answer"
    unstable = "unstable"


class Identity(NamedTuple):
    """What makes two records rivals: the store keeps one of each."""

    spec: str
    device: str
    backend: str
    template_digest: str


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One measured candidate, checked when it is made and when it is read.

    Attributes:
        spec: text key of the spec it was measured on.
        bucket: text key of that spec's shape bucket, so that specs nearby can find it.
        device: key of the device; also the name of its file.
        backend: the compiler behind it, "triton" or "tvm".
        template_digest: digest of the templates the kernel was rendered from.
        schedule: the settings, as plain data; `codegen` validates them before use.
        outcome: how the candidate ended.
        reason: why it ended so, or what is worth saying about a winner; `shortened` makes any text fit.
        seconds: median seconds of one call; required if the outcome is ok.
        spread: relative spread of the measurements behind `seconds`.
        default_seconds: the default schedule, seconds, measured in the same run.
        eager_seconds: the eager implementation, seconds, measured in the same run.
        compile_seconds: `torch.compile` of that, seconds, where it was asked for.
        ceiling_share: share of the machine's measured ceiling.
        trials: candidates tried before this one won.
        policy: how it was timed.
        toolchain: package to version; provenance, no part of the identity.
        created: when, ISO 8601 in UTC; see `utc_now`.
        source: what made it, for example a command line.

    Raises:
        RecordError: a field outside its range (a `msgspec.ValidationError` when reading).

    Example:
        >>> Record(spec="s", bucket="s", device="cpu", backend="tvm", template_digest="d", schedule={"threads": 2},
        ...        outcome=Outcome.ok, seconds=1e-3, created="2025-01-31T12:00:00Z").identity()
        Identity(spec='s', device='cpu', backend='tvm', template_digest='d')
    """

    spec: str
    bucket: str
    device: str
    backend: str
    template_digest: str
    schedule: dict[str, int | float | str | bool]
    outcome: Outcome
    reason: str = ""
    seconds: float | None = None
    spread: float | None = None
    default_seconds: float | None = None
    eager_seconds: float | None = None
    compile_seconds: float | None = None
    ceiling_share: float | None = None
    trials: int = 0
    policy: str = ""
    toolchain: dict[str, str] = msgspec.field(default_factory=dict)
    created: str
    source: str = ""

    def __post_init__(self) -> None:
        check_key("spec", self.spec)
        check_key("bucket", self.bucket)
        check_device(self.device)
        check_pattern("backend", self.backend, NAME_PATTERN)
        check_pattern("template_digest", self.template_digest, DIGEST_PATTERN)
        check_schedule(self.schedule)
        if not isinstance(self.outcome, Outcome):
            raise RecordError(field="outcome", value=self.outcome, expected="an Outcome")
        for name in ("seconds", "default_seconds", "eager_seconds", "compile_seconds", "spread", "ceiling_share"):
            value = getattr(self, name)
            if value is not None:
                check_number(name, value, zero=name in ("spread", "ceiling_share"))
        if self.outcome is Outcome.ok and self.seconds is None:
            raise RecordError(field="seconds", value=None, expected="a measured time, since the outcome is ok")
        check_count("trials", self.trials)
        for name in ("reason", "policy", "source"):
            check_text(name, getattr(self, name))
        check_toolchain(self.toolchain)
        check_created(self.created)

    def without_secrets(self) -> Record:
        """This record, the passwords of URLs in its texts masked; itself if there are none."""
        if "://" not in self.reason + self.policy + self.source:
            return self
        texts = {name: masked(getattr(self, name)) for name in ("reason", "policy", "source")}
        # Rules of length hold still: a mask may be longer than what it hides.
        texts = {name: shortened(text) for name, text in texts.items() if text != getattr(self, name)}
        return msgspec.structs.replace(self, **texts) if texts else self

    def identity(self) -> Identity:
        """What a lookup asks for, and what a commit replaces."""
        return Identity(self.spec, self.device, self.backend, self.template_digest)

    def recency(self) -> tuple[bool, datetime, float, bytes]:
        """A total order: the newer record is greater, then the faster one, then the one whose text sorts last.

        One dated in the future, by a clock that is wrong, is older than all that are not: it must not hide what is
        measured today.
        """
        slowness = float("inf") if self.seconds is None else self.seconds
        text = msgspec.json.encode(self, order="deterministic")
        return (not is_future(self.created), parse_created(self.created), -slowness, text)
