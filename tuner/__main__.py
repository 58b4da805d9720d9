"""`python -m tuner`: see `tuner.cli`."""

from __future__ import annotations

import sys

EXTRA = ("optuna", "packaging", "plotly", "rich", "scipy", "sqlalchemy", "yaml")
"""What the extra `tune` installs, by the names that are imported."""


def run() -> int:
    """Run the command line; the exit code."""
    # Here, as processes that compile import this module and need none of it.
    from trellis_ops.own_packages import require_own

    require_own("tuner")
    try:
        from tuner.cli import main

        return main(sys.argv[1:])
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRA:
            raise
        from codegen.errors import MissingPackageError

        print(f"error: {MissingPackageError(package=package, extra='tune')}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(run())
