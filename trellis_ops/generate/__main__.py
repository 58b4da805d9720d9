"""`python -m trellis_ops.generate`: see `trellis_ops.generate.cli`."""

from __future__ import annotations

if __name__ == "__main__":
    from trellis_ops.generate.cli import main

    main()
