"""Seconds until a model is loaded, and until a fresh process has its first token or picture.

    load = pace * ( opening + nodes * node + tokenizer bytes * tokenizer + weights * copy )
    cold = pace * interpreter + load + first step + pace * ( weights / faults + programs )

What Python does takes `pace` times what it took on the machine that the constants were measured on
(Xeon with AVX-512, processor seconds of five models from 24M to 0.5B parameters, within 9 %); a
probe measures its own, by the model in this package. A model that draws makes its programs with its
first picture. A first start, which packs and hashes weights, takes longer.
"""

from __future__ import annotations

from typing import NamedTuple

INTERPRETER = 0.04  # seconds: Python and `import edgert`
OPENING = 0.163  # a bundle with its sessions, and what they import
NODE = 3.8e-4  # of a graph: read, checked, lowered
TOKENIZER = 1.93e-7  # a byte of tokenizer.json, white space aside
PROGRAMS = 5.2e-4  # a node of a model that draws: cut and lowered when it first draws
COPY = 3e-10  # a byte of weights: read into large pages (`session.packed`)
FAULTS = 5e10  # bytes a second of weights that a process touches for the first time


class Start(NamedTuple):
    """Seconds. load: of `edgert.load`. ready: from the start of the process until then."""

    load: float
    ready: float


def starting(
    *, nodes: int, tokenizer: float = 0.0, weights: float = 0.0, pace: float = 1.0
) -> Start:
    """nodes: of all graphs. tokenizer: its bytes (`memory.tokenizer_bytes`). weights: bytes."""
    load = pace * (OPENING + NODE * nodes + TOKENIZER * tokenizer + COPY * weights)
    return Start(load, pace * INTERPRETER + load)


def touching(weights: float, pace: float = 1.0, *, nodes: int = 0) -> float:
    """Seconds that a process takes to have its weights before it, once; nodes: of graphs whose
    programs are made only then."""
    return pace * (weights / FAULTS + PROGRAMS * nodes)
