"""How long COMPOT takes for all matrices of a Llama of 135M parameters (30 layers, hidden 576).

    OPENBLAS_NUM_THREADS=1 python -m benchmarks.compot_time [--layers 3] [--shared]

Random weights and Gram matrices of correlated inputs; CPU seconds for each kind of matrix, and for
the whole model: from fewer layers than 30 it is extrapolated, and says so.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections import defaultdict

import numpy as np
from edgert.converters.compress.budget import choose
from edgert.converters.compress.compot import Options, compot, compot_shared
from edgert.converters.compress.whiten import Gram, whiten

LAYERS, HIDDEN, FFN, KEYS = 30, 576, 1536, 192
SHAPES = {"q": (HIDDEN, HIDDEN), "k": (HIDDEN, KEYS), "v": (HIDDEN, KEYS), "o": (HIDDEN, HIDDEN),
          "gate": (HIDDEN, FFN), "up": (HIDDEN, FFN), "down": (FFN, HIDDEN)}  # fmt: skip
INPUTS = {"attention": "qkv", "o": "o", "mlp": ("gate", "up"), "down": ("down",)}


def gram(m: int, draw: np.random.Generator) -> Gram:
    """Of 16 m inputs whose channels fall off and are mixed."""
    mix = np.linalg.qr(draw.standard_normal((m, m)))[0]
    x = (draw.standard_normal((16 * m, m)) * np.arange(1, m + 1) ** -0.7) @ mix
    return Gram(x.T @ x, len(x))


def layer(draw: np.random.Generator, ratio: float, shared: bool, spent: dict[str, float]) -> None:
    for where, names in INPUTS.items():
        m = SHAPES[names[0]][0]
        inputs = gram(m, draw)
        weights = [draw.standard_normal(SHAPES[name]) for name in names]
        start = time.process_time()
        whitening = whiten(inputs, name=where)
        spent[f"whiten {where}"] += time.process_time() - start
        groups = [weights] if shared else [[weight] for weight in weights]
        labels = ["+".join(names)] if shared else list(names)
        for label, group in zip(labels, groups, strict=True):
            size = choose(m, sum(weight.shape[1] for weight in group), ratio)
            start = time.process_time()
            if len(group) == 1:
                compot(group[0], whitening, size.k, size.s, Options(refit=True))
            else:
                compot_shared(group, whitening, size.k, size.s, Options(refit=True))
            spent[f"{label}, k {size.k}, s {size.s}"] += time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--shared", action="store_true", help="one dictionary for q, k, v, ...")
    options = parser.parse_args()
    draw, spent = np.random.default_rng(0), defaultdict[str, float](float)
    for _ in range(options.layers):
        layer(draw, options.ratio, options.shared, spent)
    for what, seconds in spent.items():
        print(f"{what:32} {seconds / options.layers * 1e3:8.1f} ms")
    total = sum(spent.values()) * LAYERS / options.layers
    how = "measured" if options.layers == LAYERS else f"extrapolated from {options.layers} layers"
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9
    print(f"{LAYERS} layers, T = 20, refit: {total:.1f} CPU seconds ({how}); peak {peak:.2f} GB")


if __name__ == "__main__":
    main()
