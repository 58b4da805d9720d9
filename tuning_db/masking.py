"""Text without passwords: the URL of a database goes into command lines, records and errors, its password into none.

A password that was not percent-encoded may hold any of the characters that divide a URL, so more is masked where it is
not clear where one ends: a host that cannot be read costs nothing, a password that can be read is lost.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

MASK = "***"

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_FILE = re.compile(r"(?:^|.*[^A-Za-z0-9+.\-])sqlite(?:\+\w+)?", re.IGNORECASE | re.DOTALL)
_PORT = re.compile(r"([^/:?\[]*):([^/?]*)")
_ENTRY = re.compile(r"([?&;])([\w.%+\-]+)=(.*?)(?=[&;][\w.%+\-]+=|$)", re.DOTALL)
_SECRET = re.compile(r"pass|pwd|secret|token|credential", re.IGNORECASE)


def masked_url(url: str) -> str:
    """`url`, of which all is one URL, however malformed, with its password and the secrets of its query masked.

    Example:
        >>> masked_url("postgresql://me:hun/ter2@host/name?sslpassword=x&sslmode=require")
        'postgresql://me:***@host/name?sslpassword=***&sslmode=require'
    """
    scheme, divided, rest = url.partition("://")
    if not divided:
        before, _, host = url.rpartition("@")
        return _masked_query(f"{MASK}@{host}" if ":" in before or "/" in before else url)
    # The path of a file has no password before it, and may hold anything.
    if not (_FILE.fullmatch(scheme) and rest.startswith("/")):
        rest = _masked_authority(rest)
    return f"{scheme}://{_masked_query(rest)}"


def masked(text: str) -> str:
    """`text` with every URL in it as `masked_url` has it.

    A URL ends at the next blank, or at the closing quote if it is the whole of what is quoted.
    """
    parts, at = [], 0
    while found := _SCHEME.search(text, at):
        end = _end(text, found)
        parts += [text[at : found.start()], masked_url(text[found.start() : end])]
        at = end
    return "".join([*parts, text[at:]])


def _end(text: str, scheme: re.Match[str]) -> int:
    quote = text[scheme.start() - 1 : scheme.start()]
    if quote in ("'", '"'):
        closing = re.compile(rf"{quote}(?=[\s,;:.)\]}}]|$)").search(text, scheme.end())
        if closing:
            return closing.start()
    blank = re.compile(r"\s").search(text, scheme.end())
    return blank.start() if blank else len(text)


def _masked_authority(rest: str) -> str:
    user, at, host = rest.rpartition("@")
    if at:
        name, colon, _ = user.partition(":")
        return f"{name}:{MASK}@{host}" if colon else rest
    port = _PORT.match(rest)
    if port and port[2] and not port[2].isdecimal():
        # A password whose host was forgotten stands where a port would.
        return f"{port[1]}:{MASK}{rest[port.end() :]}"
    return rest


def _masked_query(rest: str) -> str:
    def entry(found: re.Match[str]) -> str:
        name, value = unquote_plus(found[2]), unquote_plus(found[3])
        hidden = _SECRET.search(name) or re.search(rf"(?:{_SECRET.pattern})\w*\s*=", value, re.IGNORECASE)
        return f"{found[1]}{found[2]}={MASK if hidden else found[3]}"

    return _ENTRY.sub(entry, rest)
