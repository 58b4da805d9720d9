"""`python -m trellis_ops.train`: see `trellis_ops.train.cli`."""

from __future__ import annotations

if __name__ == "__main__":
    from trellis_ops.train.cli import main

    main()
