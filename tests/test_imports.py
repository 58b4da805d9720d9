"""The import arrows of CONTRIBUTING.md, read off the syntax trees."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("codegen", "tuning_db", "trellis_ops", "tuner")

CODEGEN_ORDER = (
    "errors",
    "ownership",
    "interruption",
    "process_folder",
    "cache_folder",
    "scalars",
    "device",
    "denied",
    "maps",
    "rule",
    "spec",
    "schedule",
    "extent",
    "cuda_block",
    "defaults",
    "legality",
    "kernels.signatures",
    "kernels.table",
    "kernels.text",
    "whole_imports",
    "render",
    "nvcc",
    "cuda_launch",
    "cuda_driver",
    "backends",
    "kernels.sequences",
    "kernels.launches",
    "kernels.operator",
    "kernels.build",
    "kernels",
    "exported",
    "export",
    "__main__",
)
"""A module of codegen imports only what stands before it here; those inside backends or maps import each other."""

MAY_IMPORT = {
    "codegen": {"codegen"},
    "tuning_db": {"tuning_db"},
    "trellis_ops": {"trellis_ops", "codegen", "tuning_db"},
    "tuner": {
        "tuner",
        "trellis_ops.reference",
        "trellis_ops.eager",
        "trellis_ops.own_packages",
        "codegen",
        "tuning_db",
    },
}

LIBRARIES = {"tuning_db": {"msgspec", "filelock", "platformdirs"}}
"""Packages that may import nothing else from outside."""

MODEL = {"config", "demo", "mixer", "model", "model_file", "recommended", "sampling", "state", "vocabulary"}
"""The modules of trellis_ops that make the reference model."""

FILES = {"content_digest", "regular_file"}
"""The modules of trellis_ops that know files and no operators."""

FOR_THE_MODEL = MODEL | FILES | {"ops", "dispatch", "outer_gradient", "tokens", "values"}
"""What they may import of trellis_ops: the operators by their public names, which device a tensor is on, files, and
whether values are to be checked."""

TRAINING = ("train", "recall")
"""The packages of trellis_ops that train the model, each importing only those before it."""

SHARED_WITH_THE_ORACLE = {"outer_gradient", "tokens"}
"""What the oracle may import of trellis_ops: names and shapes, no arithmetic."""


def modules() -> dict[str, Path]:
    """Every module of the four packages, by its dotted name."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


MODULES = modules()


def imported(source: str, module: str, is_package: bool = False) -> set[str]:
    """The modules that `source`, the text of `module`, imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package else -1]
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else base for name in names}
    return found


def problems(module: str, names: set[str]) -> list[str]:
    """What is wrong with `module` importing `names`."""
    package, _, rest = module.partition(".")
    return [
        f"{module} imports {name}: {reason}"
        for name in sorted(names)
        for reason in (
            _wrong_package(package, name),
            _wrong_order(package, rest, name),
            _wrong_use(package, rest, name),
        )
        if reason
    ]


def _wrong_package(package: str, name: str) -> str | None:
    top = name.partition(".")[0]
    if top == "tests":
        return "only tests import tests"
    if top in PACKAGES:
        allowed = MAY_IMPORT[package]
        return None if any(name == each or name.startswith(f"{each}.") for each in allowed) else "against the arrows"
    libraries = LIBRARIES.get(package)
    if libraries is not None and top not in libraries and top not in sys.stdlib_module_names:
        return f"{package} needs only {', '.join(sorted(libraries))}"
    return None


def _wrong_order(package: str, importer: str, name: str) -> str | None:
    if package != "codegen" or not name.startswith("codegen."):
        return None
    mine, other = _place_in_codegen(importer), _place_in_codegen(name.removeprefix("codegen."))
    if (mine == other and other in ("backends", "maps")) or CODEGEN_ORDER.index(other) < CODEGEN_ORDER.index(mine):
        return None
    return f"{other} does not stand before {mine} in {' <- '.join(CODEGEN_ORDER)}"


def _place_in_codegen(module: str) -> str:
    return next((place for place in CODEGEN_ORDER if module == place or module.startswith(f"{place}.")), module)


def _wrong_use(package: str, importer: str, name: str) -> str | None:
    if package != "trellis_ops" or not name.startswith("trellis_ops."):
        return None
    other, mine = name.split(".")[1], importer.partition(".")[0]
    if mine in TRAINING:
        before = TRAINING[: TRAINING.index(mine) + 1]
        return (
            None
            if other in {*MODEL, *FILES, *before, "dispatch", "outer_gradient", "ranks"}
            else "training uses the model only"
        )
    if other in TRAINING:
        shared = importer == "demo" and name.startswith("trellis_ops.train.")
        return None if shared else "nothing but the demonstration needs what trains the model"
    if importer in MODEL:
        return None if other in FOR_THE_MODEL else "the model uses operators through trellis_ops.ops only"
    if other in MODEL and importer:
        return "operators know no model"
    if importer == "reference":
        return None if other in SHARED_WITH_THE_ORACLE else "the oracle shares no expression with what it judges"
    if other == "reference":
        return "the oracle serves tests and the tuner, never a call"
    return None


@pytest.mark.parametrize("module", MODULES)
def test_imports_follow_the_arrows(module: str) -> None:
    path = MODULES[module]
    assert problems(module, imported(path.read_text(), module, path.name == "__init__.py")) == []


def test_every_module_has_a_place() -> None:
    of_codegen = {name.removeprefix("codegen.") for name in MODULES if name.startswith("codegen.")}
    assert {_place_in_codegen(name) for name in of_codegen} == set(CODEGEN_ORDER)
    assert {f"trellis_ops.{name}" for name in MODEL | FOR_THE_MODEL | SHARED_WITH_THE_ORACLE} <= MODULES.keys()


def test_templates_hold_no_python_modules() -> None:
    assert list((ROOT / "templates").rglob("*.py")) == []


@pytest.mark.parametrize(
    ("module", "source", "reason"),
    [
        ("codegen.spec", "import trellis_ops", "against the arrows"),
        ("codegen.kernels.operator", "from tuning_db import Store", "against the arrows"),
        ("codegen.rule", "from codegen.spec import Spec", "does not stand before"),
        ("codegen.spec", "def late():\n    from . import render", "does not stand before"),
        ("codegen.backends.tvm", "from ..kernels.build import build", "does not stand before"),
        ("tuning_db.store", "import torch", "needs only"),
        ("tuning_db.store", "from codegen.spec import Spec", "against the arrows"),
        ("trellis_ops.dispatch", "import tuner.search", "against the arrows"),
        ("trellis_ops.mixer", "from trellis_ops.operators import attention", "through trellis_ops.ops only"),
        ("trellis_ops.model", "from trellis_ops import eager", "through trellis_ops.ops only"),
        ("trellis_ops.operators", "from trellis_ops.model import TrellisLM", "know no model"),
        ("trellis_ops.reference", "from trellis_ops.maps import apply_map", "shares no expression"),
        ("trellis_ops.eager", "from trellis_ops import reference", "never a call"),
        ("trellis_ops.train.loop", "from trellis_ops import eager", "uses the model only"),
        ("trellis_ops.train.loop", "from trellis_ops.recall import task", "uses the model only"),
        ("trellis_ops.model", "from trellis_ops.train import loop", "trains the model"),
        ("tuner.search", "from trellis_ops.ops import trellis_attention", "against the arrows"),
        ("tuner.search", "if TYPE_CHECKING:\n    import trellis_ops", "against the arrows"),
        ("tuner.search", "from tests.inputs import Inputs", "only tests"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, reason: str) -> None:
    (found,) = problems(module, imported(source, module))
    assert reason in found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("codegen.backends.tvm", "from codegen.backends import Resources\nfrom .source_module import module_of"),
        ("tuning_db.store", "import os\nimport msgspec\nfrom tuning_db.record import Record"),
        ("trellis_ops.mixer", "from trellis_ops.ops import trellis_attention\nimport torch"),
        ("tuner.oracle", "from trellis_ops import reference\nimport optuna"),
    ],
)
def test_a_right_import_is_not(module: str, source: str) -> None:
    assert problems(module, imported(source, module)) == []
