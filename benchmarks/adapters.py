"""What adapters beside the weights cost: decoding of four requests with three adapters, beside the
same four without, in turn, on one thread.

    python -m benchmarks.adapters BUNDLE [--rank 16] [--only qkv] [--rounds 30]

The bundle is one of `random_bundle`. CPU seconds of the process, medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from edgert.kernels.low_rank import Factor, Fitted

from edgert.bundle import Bundle
from edgert.graph import Graph
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed, Session, State

REQUESTS, PROMPT, STEPS = 4, 32, 4


def random_adapter(graph: Graph, rank: int, only: str, seed: int) -> Fitted:
    """Factors of all products of the layers whose names hold `only`, one for each projection."""
    rng = np.random.default_rng(seed)
    attention = next(node.attrs for node in graph.nodes if node.op == "attention")
    size = int(attention["head_dim"])
    heads, kv_heads = (int(attention[name]) * size for name in ("heads", "kv_heads"))
    made = {}
    for name, weight in graph.weights.items():
        if len(weight.shape) != 2 or not name.startswith("layers.") or only not in name:
            continue
        n, k = weight.shape
        cuts = {"qkv": [0, heads, heads + kv_heads], "gate_up": [0, n // 2]}
        starts = cuts.get(name.rpartition(".")[2], [0])
        parts = []
        for start, stop in zip(starts, [*starts[1:], n], strict=True):
            a = rng.normal(size=(rank, k)).astype(np.float32) / np.float32(np.sqrt(k))
            b = rng.normal(size=(stop - start, rank)).astype(np.float32) * np.float32(0.1)
            parts.append(Factor(start, a, b))
        made[name] = tuple(parts)
    return Fitted(f"{seed:064}", f"random-{seed}", made)


def prompted(session: Session, keys: list[str]) -> list[State]:
    """Four states behind their prompts."""
    states = []
    for index, key in enumerate(keys):
        state = session.new_state()
        session.choose(state, key)
        ids = np.arange(PROMPT, dtype=np.int32) * 7 + 100 * index + 300
        session.step([Feed(state, ids, "none")])
        state.commit(PROMPT)
        states.append(state)
    return states


def seconds(session: Session, states: list[State]) -> float:
    """CPU seconds of a step of one token each, forgotten again."""
    token = np.array([400], np.int32)
    start = time.process_time()
    for _ in range(STEPS):
        session.step([Feed(state, token) for state in states])
        for state in states:
            state.discard()
    return (time.process_time() - start) / STEPS


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--only", default="", help="products whose names hold this")
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    with Bundle.open(asked.bundle) as bundle:
        session = open_session(bundle, SessionOptions("cpu", threads=1, ctx_size=512))
        adapters = [random_adapter(bundle.graph(), asked.rank, asked.only, s) for s in (1, 2, 3)]
        for adapter in adapters:
            session.attach(adapter)
        with_them = prompted(session, [*(a.key for a in adapters), adapters[0].key])
        without = prompted(session, [""] * REQUESTS)
        pairs = [(seconds(session, without), seconds(session, with_them))
                 for _ in range(asked.rounds)]  # fmt: skip
    base, tuned = (float(np.median(column)) for column in zip(*pairs, strict=True))
    ratio = float(np.median([b / a for a, b in pairs]))
    print(f"rank {asked.rank}, products {asked.only or 'all'}: {1e3 * base:.1f} ms a step without, "
          f"{1e3 * tuned:.1f} ms with, ratio {ratio:.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
