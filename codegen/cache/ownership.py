"""Who else could have written a file: its owner and permissions, and those of every folder and link on the way to it.

A folder is *exposed* if another user than this one and root owns it or may write to it, or to a folder above it: what
lies in it may then be theirs. Above it a folder with the sticky bit, such as /tmp, is none: there others may make files
of their own and neither rename nor remove ours. Of a group that a user has alone, as many systems make one for each,
nobody else is a member. Where the system knows no such owners, as on Windows, nothing is exposed.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from codegen.interruption.whole_imports import whole_imports

if TYPE_CHECKING:
    import grp
    import pwd

_LINKS = 40
"""As many as Linux follows."""

_ACCESS_LIST = "system.posix_acl_access"


def why_exposed(path: Path) -> str | None:
    """Who else could change what lies at `path`, in words that name the place; None if nobody could.

    What is missing is not exposed: whoever makes it has to ask again.
    """
    return _first_reason(path, _why_theirs)


def why_written_by_others(path: Path) -> str | None:
    """As `why_exposed`, where owners may be anybody: of what a user names, the owner is the user's choice."""
    return _first_reason(path, _why_writable)


def _first_reason(path: Path, why: Callable[[Path, os.stat_result, bool], str | None]) -> str | None:
    if not hasattr(os, "geteuid"):
        return None
    try:
        for place, facts, is_last in _on_the_way(path):
            reason = why(place, facts, not is_last)
            if reason is not None:
                return f"{place} {reason}"
    except OSError as error:
        return f"{path} cannot be looked at ({error.strerror or error})"
    return None


def read_own(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes that nobody else could have written.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        PermissionError: another user owns it or may write to it, or this one may not read it.
        OSError: it is a link, a folder, a pipe, a device, or larger.
    """
    content, facts = _read(path, most)
    reason = _why_theirs(path, facts, sticky_suffices=False) if hasattr(os, "geteuid") else None
    if reason is not None:
        raise PermissionError(f"it {reason}")
    return content


def read_regular(path: Path, most: int) -> bytes:
    """The content of a regular file of at most `most` bytes, whoever wrote it; a pipe does not hang the reader.

    Raises:
        OSError: there is none, or it is a link, a folder, a pipe, a device, or larger.
    """
    return _read(path, most)[0]


def readable_by_everyone(path: Path) -> bool:
    """Whether users outside its group may read the file at `path`."""
    return bool(os.stat(path).st_mode & stat.S_IROTH)


def make_private(folder: Path) -> None:
    """Make `folder`, and what is missing above it, for this user alone; what is there stays as it is."""
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_private(folder.parent)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        # Another process was first, or something else is in the way.
        if not folder.is_dir():
            raise


def make_own(folder: Path) -> str | None:
    """As `make_private`, unless others could write there: who that is, as `why_exposed` says it.

    Raises:
        OSError: it cannot be made.
    """
    exposed = why_exposed(folder)
    if exposed is None:
        make_private(folder)
        # Where there was none, somebody else may have been the first to make it.
        exposed = why_exposed(folder)
    return exposed


def write_own(path: Path, content: bytes) -> None:
    """Put `content` at `path` at once, as a file that nobody else may write to; what was there is replaced.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    unfinished = path.with_name(f"{path.stem}.{os.urandom(8).hex()}.tmp{path.suffix}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(unfinished, "wb", opener=lambda name, _: os.open(name, flags, 0o644)) as file:
            file.write(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _read(path: Path, most: int) -> tuple[bytes, os.stat_result]:
    # What was asked about is what is read: the descriptor's file, whatever has its name by now.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        with open(path, "rb", buffering=0, opener=lambda name, _: os.open(name, flags)) as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise OSError("it is no regular file")
            if facts.st_size > most:
                raise OSError(f"it has {facts.st_size} bytes, more than {most}")
            return file.read(facts.st_size), facts
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise OSError("it is no regular file") from error
        raise


def _on_the_way(path: Path) -> Iterator[tuple[Path, os.stat_result, bool]]:
    """Every folder and link that `path` leads through, the root folder first, with whether it is where `path` ends."""
    # Not normalised: after a link ".." is above its target.
    whole = path if path.is_absolute() else Path.cwd() / path
    at, links = Path(whole.anchor), 0
    left = list(reversed(whole.parts[1:]))
    yield at, os.lstat(at), not left
    while left:
        name = left.pop()
        if name == os.pardir:
            at = at.parent
            continue
        place = at / name
        try:
            facts = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISLNK(facts.st_mode):
            yield place, facts, not left
            at = place
            continue
        yield place, facts, False
        links += 1
        if links > _LINKS:
            raise OSError(f"{path} leads through more than {_LINKS} links")
        target = Path(os.readlink(place))
        at = Path(target.anchor) if target.is_absolute() else at
        left += reversed(target.parts[1:] if target.is_absolute() else target.parts)


def _why_theirs(place: Path, facts: os.stat_result, sticky_suffices: bool) -> str | None:
    if facts.st_uid not in (os.geteuid(), 0):
        return f"belongs to {_name_of_user(facts.st_uid)}"
    return _why_writable(place, facts, sticky_suffices)


def _why_writable(place: Path, facts: os.stat_result, sticky_suffices: bool) -> str | None:
    # A link's own permissions mean nothing, and in a folder with the sticky bit only owners rename and remove.
    if stat.S_ISLNK(facts.st_mode) or (sticky_suffices and facts.st_mode & stat.S_ISVTX):
        return None
    mode = f"mode {stat.S_IMODE(facts.st_mode):04o}"
    if facts.st_mode & stat.S_IWOTH:
        return f"can be written by everyone ({mode})"
    if facts.st_mode & stat.S_IWGRP and not _is_private_group(place, facts):
        return f"can be written by the group {_name_of_group(facts.st_gid)} ({mode})"
    return None


def _is_private_group(place: Path, facts: os.stat_result) -> bool:
    """Whether the group of `place` is that of its owner alone, by the convention that it has the owner's name.

    In a container neither may have a name; by the same convention they have the same number.
    """
    user, group = _account(facts.st_uid), _group(facts.st_gid)
    if user is None or group is None:
        alone = user is None and group is None and facts.st_uid == facts.st_gid
    else:
        alone = (group.gr_name, group.gr_gid) == (user.pw_name, user.pw_gid) and {*group.gr_mem} <= {user.pw_name}
    return alone and not _has_access_list(place)


def _has_access_list(place: Path) -> bool:
    """Whether more users may write than the group's bits say: those bits are then only the most that a list allows."""
    if not hasattr(os, "getxattr"):
        return True
    try:
        return bool(os.getxattr(place, _ACCESS_LIST))
    except OSError:
        return False


def _name_of_user(number: int) -> str:
    user = _account(number)
    return f"the user {number if user is None else user.pw_name}"


def _name_of_group(number: int) -> str:
    group = _group(number)
    return str(number) if group is None else group.gr_name


def _account(number: int) -> pwd.struct_passwd | None:
    with whole_imports():
        import pwd

    try:
        return pwd.getpwuid(number)
    except KeyError:
        return None


def _group(number: int) -> grp.struct_group | None:
    with whole_imports():
        import grp

    try:
        return grp.getgrgid(number)
    except KeyError:
        return None
