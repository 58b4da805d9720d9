"""All that a card is needed for, in one resumable run: correctness, sanitizer, tuning, benchmarks.

It needs neither Optuna nor TVM nor a network, since a machine with a good card often has none of them.
"""

from trellis_ops.own_packages import require_own

require_own("tuner")
