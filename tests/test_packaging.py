"""What pip installs: every package and every file it needs, and three commands that run in any folder."""

from __future__ import annotations

import fnmatch
import re
import zipfile
from pathlib import Path

import pytest

from tests.support import installed
from tests.support.installed import PACKAGES, ROOT, run
from tuner.__main__ import EXTRA

SCRIPTS = {"trellis-tune": "tuner", "trellis-codegen": "codegen", "trellis-train": "trellis_ops.lm.train"}
SCRIPTS["trellis-generate"] = "trellis_ops.generate"
NOT_INSTALLED = ("tuning_db/winners/.gitignore",)
_WHY_NOT = installed.why_not_buildable()
BUILDS = pytest.mark.skipif(_WHY_NOT is not None, reason=str(_WHY_NOT))


def files() -> set[str]:
    """The files of the packages, without what Python and a user leave there."""
    found = (path for name in PACKAGES for path in (ROOT / name).rglob("*") if path.is_file())
    names = {path.relative_to(ROOT).as_posix() for path in found if "__pycache__" not in path.parts}
    return names - set(NOT_INSTALLED)


def declared(name: str) -> bool:
    """Whether pyproject.toml has the file `name` installed."""
    setuptools = installed.project()["tool"]["setuptools"]
    folder, _, file = name.rpartition("/")
    package = folder.replace("/", ".")
    patterns = ["*.py", *setuptools["package-data"].get(package, [])]
    return package in setuptools["packages"] and any(fnmatch.fnmatch(file, pattern) for pattern in patterns)


def test_every_file_of_the_packages_is_declared():
    assert [name for name in sorted(files()) if not declared(name)] == []


def test_a_file_that_is_not_declared_is_found():
    assert not declared("trellis_ops/another/__init__.py")
    assert not declared("templates/hip/rows.j2")
    assert not declared("tuner/page.css")


def test_every_declared_package_exists():
    setuptools = installed.project()["tool"]["setuptools"]
    named = {*setuptools["packages"], *setuptools["package-data"]}
    assert [name for name in sorted(named) if not (ROOT / name.replace(".", "/")).is_dir()] == []


def test_the_extra_of_the_tuner_is_what_its_command_says_is_missing():
    names = {re.match(r"[\w-]+", each)[0] for each in installed.project()["project"]["optional-dependencies"]["tune"]}
    assert {"yaml" if name == "pyyaml" else name for name in names} == set(EXTRA)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    return installed.build_wheel(installed.copy_of_the_project(folder / "source"), folder / "wheel")


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed.environment_with(tmp_path_factory.mktemp("environment"), wheel)


@BUILDS
def test_the_wheel_has_every_file(wheel: Path):
    with zipfile.ZipFile(wheel) as content:
        names = {name for name in content.namelist() if ".dist-info/" not in name}
    assert names == files()


@BUILDS
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_in_a_folder_with_other_packages_of_these_names(script: str, programs: Path, tmp_path: Path):
    for name in ("codegen", "tuner", "tuning_db"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError('not this one')")
    variables = {"OMP_DISPLAY_ENV": "VERBOSE"}
    done = run([programs / script, "--help"], tmp_path, variables)
    assert done.returncode == 0, done.stderr
    assert f"usage: python -m {SCRIPTS[script]}" in done.stdout
    # Read by the OpenMP runtime of GNU when torch loads it, which is then too late to set it.
    spinning = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    assert spinning in ([], ["200"]) if script == "trellis-train" else "200" not in spinning


@BUILDS
def test_a_script_refuses_another_tuner_where_what_needs_none_is_imported(programs: Path, tmp_path: Path):
    (tmp_path / "tuner.py").write_text("print('ran')")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "__init__.py").write_text("print('ran')")
    done = run([programs / "trellis-tune", "--help"], tmp_path, {"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: {tmp_path / 'tuner.py'} shadows the package 'tuner'")
    assert done.stdout == ""


@BUILDS
@pytest.mark.parametrize(
    ("script", "package", "extra"),
    [
        ("trellis-tune", "optuna", "tune"),
        ("trellis-train", "tokenizers", "train"),
    ],
)
def test_a_missing_extra_is_an_error_that_says_what_to_install(
    script: str, package: str, extra: str, programs: Path, tmp_path: Path
):
    blocking = tmp_path / "blocking"
    blocking.mkdir()
    (blocking / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    (tmp_path / "text.txt").write_text("A text that is long enough to be learned. " * 100)
    train = ["text.txt", "--folder", "run", "--tokenizer", "bpe", "--vocab", "300", "--held-out", "0.2"]
    arguments = train if extra == "train" else ["tune", "--device", "cpu", "--storage", "sqlite:///studies.db"]
    done = run([programs / script, *arguments], tmp_path, {"PYTHONPATH": str(blocking)})
    assert done.returncode == 1
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert error == f"error: the package '{package}' is missing; install the extra: pip install 'trellis-ops[{extra}]'"
    assert "Traceback" not in done.stderr
