"""Products with GGUF's formats beside int4-g32, one thread, in turn: bytes a second of one row, and
operations a second of 64 rows.

    python -m benchmarks.kept_kernels [q4_k q6_k ...]

CPU seconds of the process, medians of 25 and best of 3. Random codes, real activations.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from edgert.kernels import encodings
from edgert.kernels.gguf_blocks import FORMS

from tests.kernels.products import ProductSession, exact_table, product_graph, random_weight
from tests.kernels.test_kept import random_rows

SHAPES = ((28672, 2048), (12032, 4864), (10240, 5632))
ROUNDS, WIDE = 25, 64


def sessions(names: list[str], n: int, k: int) -> dict[str, ProductSession]:
    """A session for each encoding."""
    found = {}
    for name in names:
        weight = random_rows(name, n, k) if name in FORMS else random_weight(4, n, k)
        found[name] = ProductSession(*product_graph(exact_table(k), weight), threads=1)
        found[name].rows([0])
    return found


def seconds(session: ProductSession, rows: range) -> float:
    start = time.process_time()
    session.rows(rows)
    return time.process_time() - start


def main() -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(FORMS))
    names = ["int4-g32", *parser.parse_args().names]
    for n, k in SHAPES:
        found = sessions(names, n, k)
        one: dict[str, list[float]] = {name: [] for name in names}
        many: dict[str, list[float]] = {name: [] for name in names}
        for index in range(ROUNDS):
            for name in names:
                one[name].append(seconds(found[name], range(index, index + 1)))
        for _ in range(3):
            for name in names:
                many[name].append(seconds(found[name], range(WIDE)))
        rates = {m: encodings.packed_bytes(m, n, k) / float(np.median(one[m])) for m in names}
        for name in names:
            print(
                f"{n} x {k}  {name:9} {rates[name] / 1e9:5.1f} GB/s  "
                f"{rates[name] / rates['int4-g32']:.2f} of int4-g32  "
                f"{WIDE} rows {2e-9 * n * k * WIDE / min(many[name]):4.0f} GOP/s"
            )
            found[name].close()


if __name__ == "__main__":
    main()
