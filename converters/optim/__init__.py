"""Training optimizers: DASH (arXiv 2602.02016) and MSign (arXiv 2602.01734)."""

from .dash import Dash
from .monitor import jacobian_alignment, stable_rank
from .msign import MSign

__all__ = ["Dash", "MSign", "jacobian_alignment", "stable_rank"]
