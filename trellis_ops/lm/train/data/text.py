"""Reading text: files and folders to documents, and which of it is held out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trellis_ops.files import regular_file
from trellis_ops.lm.train.errors import TextError

SUFFIXES = (".txt", ".md", ".rst", ".py")
"""Files that are read from a folder, unless others are named."""

EXCLUDED = ("site-packages", "__pycache__")
"""Folders that are not descended into, unless others are named; hidden ones never are."""

_MANY = 20
"""From so many documents on, whole documents are held out; below, the end of each one."""


@dataclass(frozen=True)
class Document:
    """One text, read without a gap from its start to its end.

    Attributes:
        name: where it came from.
        text: its bytes, at least two.
    """

    name: str
    text: bytes


def read_documents(
    paths: Sequence[Path], suffixes: Sequence[str] = SUFFIXES, excluded: Sequence[str] = EXCLUDED
) -> list[Document]:
    """The texts of files, and of the files below folders in the order of their paths.

    Args:
        paths: a file is read whatever it is called; a folder recursively.
        suffixes: ends of the names that are read below folders.
        excluded: names of folders that are not descended into.

    Raises:
        FileNotFoundError: a path that is not there. IrregularFileError: one that is neither a file nor a folder.
        TextError: nothing of two bytes or more was found.
    """
    documents = []
    for path in paths:
        for file in _files(path, tuple(suffixes), set(excluded)):
            text = regular_file.read_bytes(file)
            if len(text) >= 2:
                documents.append(Document(str(file), text))
    if not documents:
        problem = f"no text of two bytes or more; below folders only {', '.join(suffixes)} are read (--suffix)"
        raise TextError(source=", ".join(map(str, paths)), problem=problem)
    return documents


def hold_out(documents: Sequence[Document], share: float) -> tuple[list[Document], list[Document]]:
    """Documents to fit and documents to measure on, the same for every seed.

    Of twenty documents or more, every n-th is held out as a whole; of fewer, the last `share` of each.

    Raises:
        TextError: one of the two would be empty.
    """
    if len(documents) >= _MANY:
        is_held = [int((i + 1) * share) > int(i * share) for i in range(len(documents))]
        fit = [each for each, held in zip(documents, is_held, strict=True) if not held]
        held = [each for each, held in zip(documents, is_held, strict=True) if held]
    else:
        cuts = [len(each.text) - int(len(each.text) * share) for each in documents]
        fit = [Document(each.name, each.text[:cut]) for each, cut in zip(documents, cuts, strict=True) if cut >= 2]
        held = [
            Document(each.name, each.text[cut:])
            for each, cut in zip(documents, cuts, strict=True)
            if len(each.text) - cut >= 2
        ]
    if not fit or not held:
        size = sum(len(each.text) for each in documents)
        raise TextError(source=f"{size} bytes of text", problem=f"too little to hold out {share:g} of it")
    return fit, held


def _files(path: Path, suffixes: tuple[str, ...], excluded: set[str]) -> Iterator[Path]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; name files or folders of text")
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if name not in excluded and not name.startswith("."))
        for name in sorted(names):
            # A link that points nowhere is a name without a file.
            if name.endswith(suffixes) and (file := Path(folder, name)).is_file():
                yield file
