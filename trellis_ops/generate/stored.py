"""A folder where a command keeps the states of prompts, with the key by which they are found again."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from codegen.errors import FileWriteError, MissingPackageError
from trellis_ops.files import regular_file

if TYPE_CHECKING:
    from trellis_ops.serve.store import PrefixStore

_MAX_BYTES = 2**30
_KEY_BYTES = 32


def open_store(folder: Path, tokenizer: str) -> PrefixStore:
    """The store in `folder`, which is made at the first call, for its owner alone.

    Args:
        folder: of the key and the states; at most a gibibyte of them is kept.
        tokenizer: names the tokenizer of the prompts.

    Raises:
        MissingPackageError: the extra "serve" is not installed.
        FileWriteError, IrregularFileError, OSError: the folder cannot be made, or its key cannot be read.
        SizeError: its key is too short.
    """
    try:
        from trellis_ops.serve.store import Disk, PrefixStore
    except ImportError as error:
        raise MissingPackageError(package=error.name or "safetensors", extra="serve") from error
    return PrefixStore(_key(folder), [Disk(folder / "states", _MAX_BYTES)], tokenizer=tokenizer)


def _key(folder: Path) -> bytes:
    path = folder / "key"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            # Whole or not there, whoever else makes one now.
            made = folder / f".key.{secrets.token_hex(8)}"
            with os.fdopen(os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
            with contextlib.suppress(FileExistsError):
                os.link(made, path)
            made.unlink()
    except OSError as error:
        raise FileWriteError(path=path, reason=error.strerror or error) from error
    return regular_file.read_bytes(path)
