"""`python -m trellis_ops.recall`: see `trellis_ops.recall.cli`."""

from __future__ import annotations

if __name__ == "__main__":
    from trellis_ops.recall.cli import main

    main()
