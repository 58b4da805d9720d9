"""Trained models that are installed with the package, and the command that makes one of a run of training."""

from trellis_ops.lm.shipped.models import SHIPPED, load_shipped

__all__ = ["SHIPPED", "load_shipped"]
