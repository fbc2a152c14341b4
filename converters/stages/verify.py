"""verify: open what was written, and let a text model answer the golden prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...bundle.manifest import Golden
from ..golden import golden_answers
from .base import Context, PartInProgress


class Verify:
    """Report of text parts: `golden`, their answers, and `device`, which gave them (or why there
    are none)."""

    name = "verify"

    def __init__(self, *, golden: bool) -> None:
        self.golden = golden

    def key(self) -> Mapping[str, Any]:
        return {"golden": self.golden}

    def nbytes(self, part: PartInProgress) -> int:
        return 0

    def run(self, part: PartInProgress, context: Context) -> PartInProgress:
        if part.role != "text" or context.tokenizer is None:
            return part
        answers: tuple[Golden, ...] = ()
        device = "not asked for"
        with context.preview() as bundle:
            if self.golden:
                answers, device = golden_answers(bundle, context.tokenizer)
        return part.reported(self.name, golden=answers, device=device)
