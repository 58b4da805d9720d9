"""This project in environments of their own, as pip installs it; all else comes from the environment of the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it.

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("codegen", "templates", "trellis_ops", "tuner", "tuning_db")
OLDEST_SETUPTOOLS = 77
"""The first that knows the licence as pyproject.toml states it."""


def project() -> dict[str, object]:
    """What pyproject.toml says."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def why_not_buildable() -> str | None:
    """Why nothing can be built here without a network; None if it can. Looks in another process, as pip and
    setuptools change the one that imports them."""
    # In this order: pip imports distutils, and setuptools then refuses to be imported.
    code = "import setuptools, pip; print(setuptools.__version__.partition('.')[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode or int(done.stdout) < OLDEST_SETUPTOOLS:
        return f"needs pip and setuptools {OLDEST_SETUPTOOLS}: {done.stdout.strip() or done.stderr.strip()[-80:]}"
    return None


def copy_of_the_project(folder: Path) -> Path:
    """What is built from, in a folder of its own, since building leaves files in it."""
    folder.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def pip(*arguments: str | Path) -> None:
    """Run pip without a network and without the folder it is started in."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]
    command = [sys.executable, "-m", "pip", *map(str, arguments), *options]
    subprocess.run(command, check=True, env=bare_environment())


def build_wheel(source: Path, folder: Path) -> Path:
    """The wheel of what `source` holds."""
    pip("wheel", "--no-build-isolation", source, "--wheel-dir", folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment_with(folder: Path, *what: str | Path) -> Path:
    """The folder of programs of a new environment in which pip has installed `what`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "shared.pth").write_text("\n".join(shared) + "\n")
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*map(str, command), "--no-build-isolation", *map(str, what)], check=True, env=bare_environment())
    return folder / "bin"


def bare_environment() -> dict[str, str]:
    """The variables of this process without those that say where Python looks for modules, or how OpenMP waits."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "GOMP_", "OMP_"))}


def run(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `command` in `folder`, whether it succeeds or not."""
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**bare_environment(), **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )
