"""Every bad bundle, made from one good tiny bundle by one named mutation each.

`CORPUS` lists the mutations of rows H01-H05, H07-H10 and H12; what is not about one bad file (H06,
hard links, races, caches) has tests of its own. A change of the format changes `tests/tiny.py`, and
with it all of these. `python -m tests.hostile.make_corpus OUT` writes them all to look at.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.hostile import (
    corpus_bundle,
    corpus_draft,
    corpus_manifest,
    corpus_sparse,
    corpus_tensors,
)
from tests.hostile.spoil import CORPUS, Mutation, make
from tests.tiny import tiny_bundle

__all__ = [
    "CORPUS", "Mutation", "corpus_bundle", "corpus_draft", "corpus_manifest", "corpus_sparse",
    "corpus_tensors", "make",
]  # fmt: skip

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    original = tiny_bundle(folder / "good.edge")
    for item in CORPUS:
        make(item, original, folder / f"{item.id}.edge")
        print(item.id)
