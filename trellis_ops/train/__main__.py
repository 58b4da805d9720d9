"""`python -m trellis_ops.train`."""

from __future__ import annotations

from trellis_ops.train.cli import main

if __name__ == "__main__":
    main()
