"""`python -m trellis_ops.lm.recall`: see `trellis_ops.lm.recall.cli`."""

from __future__ import annotations

if __name__ == "__main__":
    from trellis_ops.lm.recall.cli import main

    main()
