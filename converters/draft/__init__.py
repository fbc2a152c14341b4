"""Draft heads: a small layer that guesses what a model will write next, trained on its answers.

    report = draft("model.edge", "model-draft.edge", DraftRequest(data=Path("prompts.jsonl")))

The model answers the prompts; a head of one layer that reads three of its layers learns to guess
these answers (EAGLE-3, arXiv 2503.01840) with a loss that counts right guesses (LK, 2602.23881); it
is stored in codes as the part `draft` of a copy of the bundle, with what its guesses were worth.
Needs torch; importing this package does not. Under torchrun all ranks call it.
"""

from __future__ import annotations

from os import PathLike
from typing import TYPE_CHECKING

from ...errors import ConvertError
from ...extras import require

if TYPE_CHECKING:
    from .make import DraftReport, DraftRequest

__all__ = ["draft"]


def draft(
    target: str | PathLike[str], out: str | PathLike[str], request: DraftRequest
) -> DraftReport:
    """Write `out`, the bundle `target` with a draft head. Raises ConvertError, BundleError and
    ResourceError; see `make.DraftRequest` for what is asked."""
    require("torch", "a draft head", ConvertError)
    from .make import make

    return make(target, out, request)
