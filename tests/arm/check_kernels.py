"""The CPU kernels on an (emulated) ARM board against NumPy; started by run.sh.

    python3 -m tests.arm.check_kernels [products] [model]

One line a check; exit status 1 when one fails. Speed means nothing under emulation.
"""

from __future__ import annotations

import platform
import sys
import time

import numpy as np
from edgert.kernels import simd

from edgert.session.base import Feed, Session
from edgert.session.cpu import CpuSession
from edgert.session.reference import ReferenceSession

from ..closeness import distance
from ..kernels.products import ProductSession, exact_table, expected, product_graph, random_weight
from ..tiny import tiny_graph, tiny_weights

SUMS = 1e-6
LOGITS = 1e-2  # activations on the edge of two codes may take the other one
CACHED = 5e-2  # ... and many do, where keys and values are rounded and the reference's are not
failures: list[str] = []


def report(name: str, error: float, limit: float, began: float) -> None:
    verdict = "ok" if error <= limit else "FAILED"
    if verdict == "FAILED":
        failures.append(name)
    seconds = time.monotonic() - began
    print(f"{verdict:6} {name}: error {error:.3g} (limit {limit:g}), {seconds:.0f} s", flush=True)


def products() -> None:
    """int4 and int8 products, plain and gated: rows alone and in tiles, one and two threads."""
    for bits in (4, 8):
        for act, n, k in (("", 33, 95), ("silu", 32, 64)):
            began = time.monotonic()
            table, weight = exact_table(k), random_weight(bits, n, k)
            graph, stored = product_graph(table, weight, act=act)
            reference, errors, differ = expected(table, weight, act=act), [0.0], 0
            alone = None
            for threads in (1, 2):
                session = ProductSession(graph, stored, threads=threads)
                if alone is None:
                    alone = np.concatenate([session.rows([row]) for row in range(len(table))])
                    errors.append(distance(reference, alone)[0])
                for count in (2, 5, 9, 32, 33, 65):
                    got = session.rows(range(count))
                    differ += int(np.count_nonzero(got != alone[:count]))
                session.close()
            name = f"int{bits}{' ' + act if act else ''} {n}x{k}"
            report(name, max(errors), SUMS, began)
            report(f"{name}, values that depend on the row count", float(differ), 0.0, began)


def model() -> None:
    """A whole int4 model: 150 tokens of prompt in two chunks, then 3 tokens one by one."""
    graph = tiny_graph(quant="int4", context=192, window=24)
    weights = tiny_weights(graph)
    tokens = np.random.default_rng(1).integers(0, graph.vocab_size, 153).astype(np.int32)
    chunks = [tokens[:100], tokens[100:150], *(tokens[i : i + 1] for i in range(150, 153))]

    def logits(session: Session) -> np.ndarray:
        state, out = session.new_state(), []
        for chunk in chunks:
            out.append(session.step([Feed(state, chunk, "all")])[0])
            state.commit(len(chunk))
        session.close()
        return np.concatenate(out)

    began = time.monotonic()
    reference = logits(ReferenceSession(graph, weights))
    for kv_bits in (32, 16, 8):
        got = logits(CpuSession(graph, weights, threads=2, kv_bits=kv_bits))
        limit = LOGITS if kv_bits == 32 else CACHED
        report(f"model, {kv_bits}-bit KV", distance(reference, got)[0], limit, began)


def main() -> None:
    print(f"{platform.machine()}, kernels for {simd.ISA}", flush=True)
    chosen = sys.argv[1:] or ["products", "model"]
    for name in chosen:
        {"products": products, "model": model}[name]()
    if failures:
        sys.exit(f"{len(failures)} checks failed: {', '.join(failures)}")
    print("all checks passed")


if __name__ == "__main__":
    main()
