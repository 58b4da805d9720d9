"""`python -m trellis_ops.recall`: see `trellis_ops.recall.cli`."""

from __future__ import annotations

import os

if __name__ == "__main__":
    # Read once, when torch starts its threads, which must not spin while the threads of a compiled kernel work.
    os.environ.setdefault("GOMP_SPINCOUNT", "200")
    from trellis_ops.recall.cli import main

    main()
