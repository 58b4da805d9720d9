"""`python -m trellis_ops.lm.train`: see `trellis_ops.lm.train.cli`."""

from __future__ import annotations

if __name__ == "__main__":
    from trellis_ops.lm.train.cli import main

    main()
