"""The op catalogue: every operation a graph may contain, and what it needs.

This module is the contract between graphs and executors. It holds names, attributes and shape
rules only (`ops_text.py`, `ops_image.py` and so on), so that reading or checking a graph
imports neither numba nor onnx. An op has four implementations: NumPy `reference` (reads like the
formula), Numba kernel and ONNX emission in the module that `Op.module` names, and torch in the
converters.

Shapes are written with these letters: T tokens of a step, R selected rows, N and M rows, H query
heads, G key/value heads, D head size, C model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from .op import Attr, Attrs, Dim, Infer, Op, OpError, Shape
from .ops_experts import EXPERT
from .ops_image import IMAGE, POINTWISE
from .ops_latent import LATENT
from .ops_linear import LINEAR
from .ops_recurrent import RECURRENT
from .ops_text import ACTIVATIONS, TEXT

__all__ = [
    "ACTIVATIONS", "CATALOGUE", "POINTWISE", "Attr", "Attrs", "Dim", "Infer", "Op", "OpError",
    "Shape",
]  # fmt: skip

_ROWS = (*TEXT, *IMAGE, *RECURRENT, *LINEAR, *EXPERT, *LATENT)
CATALOGUE: dict[str, Op] = {op.name: op for op in _ROWS}
