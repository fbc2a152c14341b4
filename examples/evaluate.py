"""Perplexity and bits per byte of a text, from a model's logits.

    python examples/evaluate.py [BUNDLE [FILE]]

Without a file it scores a few sentences. The text is scored after the model's start token, in
windows of at most 512 tokens that do not overlap. `edgert eval` does more: moving windows, several
documents, zero-shot tasks.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np

import edgert
from edgert.demo import demo_bundle

WINDOW = 512
START = "<|endoftext|>"  # of the demo model; a model that adds its own start token needs none
TEXT = "The sun was warm and the sky was blue. A small bird sat in a tree and sang a song. "


def nats(model: edgert.TextModel, ids: list[int]) -> float:
    """Summed -log p of ids[1:], each given the ids before it."""
    logits = model.logits(ids[:-1]).astype(np.float64)  # [T, V]
    top = logits.max(axis=1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
    return float((total - logits[np.arange(len(ids) - 1), ids[1:]]).sum())


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else demo_bundle()
    text = Path(sys.argv[2]).read_text(encoding="utf-8") if len(sys.argv) > 2 else TEXT
    with edgert.load(path) as model:
        start = model.tokenize("") or model.tokenize(START, special=True)[:1]
        ids = [*start, *model.tokenize(text, bos=False)]
        size = min(WINDOW, model.context)
        windows = [ids[at : at + size + 1] for at in range(0, len(ids) - 1, size)]
        loss = sum(nats(model, window) for window in windows)
        tokens, octets = len(ids) - 1, len(text.encode())
        print(f"perplexity     {math.exp(loss / tokens):.3f}")
        print(f"bits per byte  {loss / math.log(2) / octets:.4f}")
        print(f"of {tokens} tokens, {octets} bytes")


if __name__ == "__main__":
    main()
