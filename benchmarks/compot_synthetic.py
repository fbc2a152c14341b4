"""COMPOT against its baselines on synthetic layers, next to the errors that are expected.

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.compot_synthetic [--seeds 3]

Inputs `X [1024, 128]` with a falling spectrum; weights `[128, 256]` whose singular values fall as a
power, or whose columns lie in 16 subspaces with noise. Cells are `||X (W - W')|| / ||X W||`, the
mean over seeds, with the reference value in brackets; times are CPU seconds on this machine.
COMPOT: arXiv 2602.15200. SVD-LLM: arXiv 2403.07378. CoSpaDi: arXiv 2509.22075.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from edgert.converters.compress.baselines import cospadi, svd_llm
from edgert.converters.compress.checks import F64
from edgert.converters.compress.compot import Options, compot
from edgert.converters.compress.result import Factors
from edgert.converters.compress.whiten import Gram, Whitening, whiten

COLUMNS = ("SVD-LLM", "COMPOT 20", "+ refit", "COMPOT 100", "random 20", "CoSpaDi 20")
CASES = {
    ("power", 0.2, 68, 96, 48): (0.155, 0.110, 0.107, 0.106, 0.143, 0.108),
    ("power", 0.4, 51, 72, 36): (0.200, 0.162, 0.160, 0.160, 0.188, 0.162),
    ("subspaces", 0.2, 68, 96, 48): (0.119, 0.079, 0.076, 0.075, 0.120, 0.077),
    ("subspaces", 0.4, 51, 72, 36): (0.171, 0.129, 0.127, 0.125, 0.160, 0.127),
}
M, N = 128, 256


def rotation(side: int, draw: np.random.Generator) -> F64:
    return np.asarray(np.linalg.qr(draw.standard_normal((side, side)))[0], np.float64)


def layer(kind: str, seed: int) -> tuple[F64, F64, Whitening]:
    """Inputs, weight and whitening."""
    draw = np.random.default_rng(seed)
    x = (draw.standard_normal((8 * M, M)) * np.arange(1, M + 1) ** -0.7) @ rotation(M, draw)
    if kind == "power":
        falls = np.arange(1, M + 1) ** -0.3
        w = (rotation(M, draw) * falls) @ rotation(N, draw)[:M]
    else:
        bases = [np.linalg.qr(draw.standard_normal((M, M // 8)))[0] for _ in range(16)]
        clean = np.array([bases[j % 16] @ draw.standard_normal(M // 8) for j in range(N)]).T
        noise = draw.standard_normal((M, N))
        w = clean / np.linalg.norm(clean, axis=0) + 0.3 * noise / np.linalg.norm(noise, axis=0)
    return x, w, whiten(Gram(x.T @ x, len(x)), 1e-8)


def methods(
    w: F64, white: Whitening, rank: int, k: int, s: int
) -> dict[str, Callable[[], Factors]]:
    return {
        "SVD-LLM": lambda: svd_llm(w, white, rank),
        "COMPOT 20": lambda: compot(w, white, k, s),
        "+ refit": lambda: compot(w, white, k, s, Options(refit=True)),
        "COMPOT 100": lambda: compot(w, white, k, s, Options(iterations=100)),
        "random 20": lambda: compot(w, white, k, s, Options(init="random")),
        "CoSpaDi 20": lambda: cospadi(w, white, k, s, iterations=20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    print(f"| data, CR | r | k, s | {' | '.join(COLUMNS)} | seconds, + refit / CoSpaDi | ratio |")
    print("|---" * (len(COLUMNS) + 5) + "|")
    for (kind, ratio, rank, k, s), expected in CASES.items():
        errors, spent = np.zeros((seeds, len(COLUMNS))), np.full((seeds, len(COLUMNS)), np.inf)
        for seed in range(seeds):
            x, w, white = layer(kind, seed)
            for place, call in enumerate(methods(w, white, rank, k, s).values()):
                begin = time.process_time()
                found = call()
                spent[seed, place] = time.process_time() - begin
                gap = np.linalg.norm(x @ (w - found.product()))
                errors[seed, place] = gap / np.linalg.norm(x @ w)
        cells = [f"{e:.3f} ({r:.3f})" for e, r in zip(errors.mean(axis=0), expected, strict=True)]
        fast, slow = spent.min(axis=0)[[2, 5]]
        print(f"| {kind} {ratio} | {rank} | {k}, {s} | {' | '.join(cells)} "
              f"| {fast:.3f} / {slow:.2f} | {slow / fast:.0f} |")  # fmt: skip


if __name__ == "__main__":
    main()
