"""The CPU kernels on an (emulated) ARM board against NumPy; started by run.sh.

    python3 -m tests.arm.check_kernels [products] [model] [assembly]

One line a check; exit status 1 when one fails. Speed means nothing under emulation.
"""

from __future__ import annotations

import platform
import re
import sys
import time
import zlib

import numpy as np
from edgert.kernels import simd
from edgert.kernels.cpu import jit

from ..closeness import distance
from ..kernels.isa_logits import KV_BITS, cpu_logits, reference_logits
from ..kernels.products import (
    ENCODINGS,
    ProductSession,
    exact_table,
    expected,
    product_graph,
    random_weight,
)

SUMS = 1e-6
# Activations on the edge of two codes may take the other one, and many do where keys and values are
# rounded and the reference's are not.
LIMITS = {32: 1e-2, 16: 5e-2, 8: 5e-2}
# In the row kernel, and in a tile or half of one.
INSTRUCTIONS = {
    "dotprod": {"sdot": 32 + 32},
    "i8mm": {"sdot": 32, "smmla": 16},
    "avx2": {"vpmaddubsw": 16 + 16},
    "avxvnni": {"vpdpbusd": 16 + 16},
    "avx512vnni": {"vpdpbusd": 8 + 8},
}
failures: list[str] = []


def report(name: str, error: float, limit: float, began: float) -> None:
    verdict = "ok" if error <= limit else "FAILED"
    if verdict == "FAILED":
        failures.append(name)
    seconds = time.monotonic() - began
    print(f"{verdict:6} {name}: error {error:.3g} (limit {limit:g}), {seconds:.0f} s", flush=True)


def products() -> None:
    """int4 and int8 products, plain and gated: rows alone and in tiles, one and two threads."""
    for bits in ENCODINGS:
        for act, n, k in (("", 33, 95), ("silu", 32, 64)):
            began = time.monotonic()
            table, weight = exact_table(k, kind=bits), random_weight(bits, n, k)
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
    """A whole model: prompt in chunks, drafts, tokens one by one. The checksum of the logits is
    the same on every instruction set."""
    began = time.monotonic()
    reference, found = reference_logits(), cpu_logits()
    for bits, got in zip(KV_BITS, found, strict=True):
        report(f"model, {bits}-bit KV", distance(reference, got)[0], LIMITS[bits], began)
    print(f"       checksum of the logits: {zlib.crc32(found.tobytes()):08x}", flush=True)


def assembly() -> None:
    """The products consist of the instructions that the ISA is named after."""
    for name in ("linear_int4", "linear_int8"):
        began = time.monotonic()
        text = jit.compile_kernel(name)._library.get_asm_str()
        for instruction, wanted in INSTRUCTIONS.get(simd.ISA, {}).items():
            count = len(re.findall(rf"\b{instruction}\b", text))
            print(f"       {name}: {count} x {instruction}", flush=True)
            report(f"{name}, {instruction} missing", float(max(wanted - count, 0)), 0.0, began)


def main() -> None:
    print(f"{platform.machine()}, kernels for {simd.ISA}", flush=True)
    checks = {"products": products, "model": model, "assembly": assembly}
    for name in sys.argv[1:] or checks:
        checks[name]()
    if failures:
        sys.exit(f"{len(failures)} checks failed: {', '.join(failures)}")
    print("all checks passed")


if __name__ == "__main__":
    main()
