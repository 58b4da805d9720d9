"""How a program that has not imported `trellis_ops.hf` loads a folder: by a module in it that imports the classes."""

from __future__ import annotations

import os
from pathlib import Path

from trellis_ops.files import regular_file

_MODULE = "modeling_trellis"

AUTO_MAP = {
    "AutoConfig": f"{_MODULE}.TrellisHFConfig",
    "AutoModel": f"{_MODULE}.TrellisModel",
    "AutoModelForCausalLM": f"{_MODULE}.TrellisForCausalLM",
}
"""What `config.json` says of the classes; transformers reads it where it is given `trust_remote_code=True`."""

_SOURCE = '''"""The classes of this model are those of the installed package trellis-ops."""

from trellis_ops.hf import TrellisForCausalLM, TrellisHFConfig, TrellisModel

__all__ = ["TrellisForCausalLM", "TrellisHFConfig", "TrellisModel"]
'''


def write_remote_code(folder: str | os.PathLike[str]) -> None:
    """Put the module that `AUTO_MAP` names into `folder`.

    Raises:
        FileWriteError, IrregularFileError: it cannot be written.
    """
    regular_file.write(Path(folder, f"{_MODULE}.py"), _SOURCE)
