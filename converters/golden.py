"""What a bundle says about itself: who made it from what, and answers it must give again."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from ..bundle.manifest import Golden, Provenance
from ..bundle.reader import Bundle
from ..errors import DeviceError
from ..session.options import SessionOptions
from ..text.tokenizer import Tokenizer

PROMPTS = ("Once upon a time", "The capital of France is")
TOKENS = 16


def golden_answers(
    bundle: Bundle, tokenizer: Tokenizer, options: SessionOptions | None = None
) -> tuple[tuple[Golden, ...], str]:
    """Greedy answers of a bundle, and the device that gave them (or why there are none)."""
    from ..evaluation.verify import greedy
    from ..session import open_session

    longest = max(bundle.graph().context - TOKENS, 0)
    prompts = [tuple(tokenizer.encode(text, bos=True)[:longest]) for text in PROMPTS]
    if not all(prompts):
        return (), f"none: the context is too short for a prompt and {TOKENS} tokens"
    needed = max(map(len, prompts)) + TOKENS  # memory for the model's whole context is not
    try:
        session = open_session(bundle, replace(options or SessionOptions(), ctx_size=needed))
    except DeviceError as error:
        return (), f"none: {error.message}"
    try:
        answers = [Golden(ids, greedy(session, ids, TOKENS)) for ids in prompts]
    finally:
        session.close()
    return tuple(answers), session.device


def own_version() -> str:
    """edgert's version, "unknown" where it runs from a source tree."""
    try:
        return version("edgert")
    except PackageNotFoundError:
        return "unknown"


def provenance(command: str, sources: Mapping[str, str]) -> Provenance:
    """command, SHA-256 by source file, the versions that ran, and the day (UTC)."""
    versions = {
        "edgert": own_version(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    return Provenance(command, versions, dict(sources), today)
