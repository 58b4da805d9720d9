"""Who else could have written a file, asked of real files with real owners and permissions."""

from __future__ import annotations

import os
import pwd
import socket
import stat
import sys
from pathlib import Path

import pytest

from codegen.cache.ownership import make_own, read_own, read_regular, why_exposed, why_written_by_others, write_own

OTHER = 54_321
"""A user without an account."""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="owners and permissions as POSIX has them")
root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "above" / "folder"
    made.mkdir(parents=True, mode=0o700)
    return made


def test_what_only_the_user_may_write_is_not_exposed(folder):
    for mode in (0o700, 0o755, 0o555):
        folder.chmod(mode)
        assert why_exposed(folder) is None
    assert why_exposed(folder / "missing" / "too") is None


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o1777])
def test_a_folder_that_everyone_may_write_is_exposed(folder, mode):
    folder.chmod(mode)
    assert why_exposed(folder) == f"{folder} can be written by everyone (mode {mode:04o})"


def test_a_folder_above_is_exposed_unless_it_has_the_sticky_bit(folder):
    folder.parent.chmod(0o777)
    assert why_exposed(folder).startswith(f"{folder.parent} can be written by everyone")
    assert why_exposed(folder / "file").startswith(f"{folder.parent} can be written by everyone")
    folder.parent.chmod(0o1777)
    assert why_exposed(folder) is None


@root
def test_what_belongs_to_another_user_is_exposed_and_what_is_in_it_too(folder):
    os.chown(folder.parent, OTHER, OTHER)
    folder.parent.chmod(0o1777)  # The owner of a folder renames in it, whatever the bit says.
    assert why_exposed(folder) == f"{folder.parent} belongs to the user {OTHER}"
    assert why_written_by_others(folder) is None


@root
def test_a_group_is_private_if_it_has_the_name_of_the_owner_alone(folder):
    folder.chmod(0o775)
    assert os.stat(folder).st_gid == pwd.getpwuid(0).pw_gid
    assert why_exposed(folder) is None
    os.chown(folder, 0, OTHER)
    assert why_exposed(folder) == f"{folder} can be written by the group {OTHER} (mode 0775)"
    os.chown(folder, OTHER, OTHER)
    assert why_written_by_others(folder) is None  # Neither has a name, and both one number.
    os.chown(folder, OTHER, OTHER + 1)
    assert "can be written by the group" in why_written_by_others(folder)


def test_a_list_of_access_lets_others_into_a_private_group(folder):
    owner = pwd.getpwuid(os.geteuid())
    os.chown(folder, -1, owner.pw_gid)
    folder.chmod(0o775)
    # Version 2; owner rwx, user OTHER rwx, group r-x, mask rwx, others r-x.
    entries = [(1, 7, 2**32 - 1), (2, 7, OTHER), (4, 5, 2**32 - 1), (16, 7, 2**32 - 1), (32, 5, 2**32 - 1)]
    access = (2).to_bytes(4, "little") + b"".join(
        tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + number.to_bytes(4, "little")
        for tag, bits, number in entries
    )
    try:
        os.setxattr(folder, "system.posix_acl_access", access)
    except (OSError, AttributeError):
        pytest.skip("this file system has no lists of access")
    assert "can be written by the group" in why_exposed(folder)


def test_the_way_is_that_of_the_links_and_of_what_they_point_to(folder, tmp_path):
    (link := tmp_path / "link").symlink_to(folder / ".." / "folder")
    assert why_exposed(link / "file") is None
    folder.chmod(0o777)
    assert why_exposed(link / "file").startswith(f"{folder} can be written")
    folder.chmod(0o700)
    (tmp_path / "again").symlink_to("link")
    folder.parent.chmod(0o777)
    assert why_exposed(tmp_path / "again").startswith(f"{folder.parent} can be written")


def test_after_a_link_two_dots_are_above_its_target(folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    (sibling := folder.parent / "sibling").mkdir(mode=0o777)
    sibling.chmod(0o777)
    assert why_exposed(tmp_path / "link" / ".." / "sibling").startswith(f"{sibling} can be written")


@root
def test_a_link_of_another_user_is_exposed(folder, tmp_path):
    (link := tmp_path / "link").symlink_to(folder)
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    assert why_exposed(link / "file") == f"{link} belongs to the user {OTHER}"


def test_links_in_a_circle_are_exposed(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "links" in why_exposed(tmp_path / "a")


def test_a_folder_is_made_for_the_user_alone_and_one_that_is_there_stays_as_it_is(folder, tmp_path):
    folder.chmod(0o755)
    before = os.umask(0)
    try:
        assert make_own(folder / "new" / "newer") is None
    finally:
        os.umask(before)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder / "new", folder / "new" / "newer")] == [
        *(0o755, 0o700, 0o700)
    ]
    folder.chmod(0o777)
    assert make_own(folder / "another").startswith(f"{folder} can be written")
    assert not (folder / "another").exists()


def test_a_file_is_written_at_once_and_by_nobody_else(folder):
    before = os.umask(0)
    try:
        write_own(folder / "file.so", b"content")
        write_own(folder / "file.so", b"again")
    finally:
        os.umask(before)
    assert [path.name for path in folder.iterdir()] == ["file.so"]
    assert read_own(folder / "file.so", 5) == b"again"
    assert stat.S_IMODE((folder / "file.so").stat().st_mode) == 0o644
    (folder / "folder.so").mkdir()
    with pytest.raises(IsADirectoryError):
        write_own(folder / "folder.so", b"content")
    assert sorted(path.name for path in folder.iterdir()) == ["file.so", "folder.so"]


def test_a_link_in_place_of_a_file_is_replaced_and_its_target_stays(folder):
    (folder / "target").write_bytes(b"mine")
    (folder / "file").symlink_to("target")
    with pytest.raises(OSError, match="no regular file"):
        read_regular(folder / "file", 10)
    write_own(folder / "file", b"new")
    assert (folder / "target").read_bytes() == b"mine"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # The name of a socket is short.
        made.bind(path.name)


@pytest.mark.parametrize(
    "make",
    [fifo, listening, Path.mkdir, lambda path: path.symlink_to("/dev/zero")],
    ids=["pipe", "socket", "folder", "link"],
)
def test_what_is_no_file_is_not_read_and_does_not_hang(folder, make, monkeypatch):
    monkeypatch.chdir(folder)
    make(folder / "file")
    for read in (read_own, read_regular):
        with pytest.raises(OSError, match="no regular file"):
            read(folder / "file", 10)


@root
def test_a_device_is_not_read(folder):
    try:
        os.mknod(folder / "file", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        (folder / "file").open("rb").close()
    except PermissionError:
        pytest.skip("no devices may be made here")
    with pytest.raises(OSError, match="no regular file"):
        read_own(folder / "file", 10)


def test_a_file_that_others_could_have_written_is_read_by_those_only_who_do_not_mind(folder):
    (path := folder / "file").write_bytes(b"content")
    path.chmod(0o666)
    assert read_regular(path, 10) == b"content"
    with pytest.raises(PermissionError, match="can be written by everyone"):
        read_own(path, 10)
    path.chmod(0o644)
    assert read_own(path, 10) == b"content"
    with pytest.raises(OSError, match="7 bytes, more than 6"):
        read_own(path, 6)


@root
def test_a_file_of_another_user_is_read_by_those_only_who_do_not_mind(folder):
    (path := folder / "file").write_bytes(b"content")
    os.chown(path, OTHER, OTHER)
    assert read_regular(path, 10) == b"content"
    with pytest.raises(PermissionError, match=f"belongs to the user {OTHER}"):
        read_own(path, 10)
