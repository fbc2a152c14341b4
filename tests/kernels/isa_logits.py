"""Logits of a small model with every encoding of weights and cache, to compare instruction sets.

    python -m tests.kernels.isa_logits OUT.npy KERNEL-FOLDER

Needs NumPy, msgspec, tqdm and Numba only, so that it runs on an emulated ARM board as well.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np

from edgert.roles import vocab_size
from edgert.session.base import Feed, Session
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

from ..tiny import tiny_graph, tiny_weights
from .products import F32

GRAPH = tiny_graph(quant="mixed", context=192, window=24)
WEIGHTS = tiny_weights(GRAPH)
TOKENS = np.random.default_rng(1).integers(0, vocab_size(GRAPH), 160).astype(np.int32)
CUTS = (0, 101, 150, 155, 157, 158, 159, 160)  # prompts, drafts, single tokens
KV_BITS = (32, 16, 8)


def logits(session: Session) -> F32:
    """[160, vocabulary], fed in pieces; closes the session."""
    state, out = session.new_state(), []
    for start, stop in pairwise(CUTS):
        out.append(session.step([Feed(state, TOKENS[start:stop], "all")])[0].logits)
        state.commit(stop - start)
    session.close()
    return np.concatenate(out)


def cpu_logits(cache: Path | None = None) -> F32:
    """[3, 160, vocabulary] of the kernels, one for each of KV_BITS."""
    return np.stack(
        [
            logits(CpuSession(GRAPH, WEIGHTS, threads=2, kv_bits=bits, cache=cache))
            for bits in KV_BITS
        ]
    )


def reference_logits() -> F32:
    """[160, vocabulary] of the NumPy reference, which rounds no keys and values."""
    return logits(ReferenceSession(GRAPH, WEIGHTS))


if __name__ == "__main__":
    np.save(sys.argv[1], cpu_logits(Path(sys.argv[2])))
