"""Laws of bits from our own measurements: fitted to some configurations, told of the others.

    python -m benchmarks.bit_laws

Reads benchmarks/results/compression.jsonl (bits a byte above the dense model, two models, four
quantisers, 2 to 6 bits, several groups). For each model and quantiser, ln(delta) is a line in the
bits that a weight takes, scales included (`edgert.scaling.laws.fit_bits`); each configuration is
held out once and told by the fit to the others. Below it the published law's slope (arXiv
2411.04330); its level is in nats a token and depends on what a token is.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from edgert.scaling.laws import PTQ, fit_bits

RESULTS = Path(__file__).resolve().parent / "results" / "compression.jsonl"
FLOOR = 5e-4  # bits a byte: less is within the noise of the text
METHODS = ("gptq", "awq", "hqq", "rtn")


def measured() -> dict[tuple[str, str], list[tuple[float, float]]]:
    """(model, quantiser) -> (bits a weight, bits a byte above dense), unhealed."""
    rows = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    dense = {r["model"]: r["bits_per_byte"] for r in rows if r["method"] == "dense f32"}
    found: dict[tuple[str, str], dict[float, float]] = defaultdict(dict)
    for row in rows:
        method, _, encoding = row["method"].partition(" ")
        above = row["bits_per_byte"] - dense.get(row["model"], math.inf)
        grid = encoding.startswith(("int", "uint")) and " " not in encoding
        plain = row["side"] == "edgert" and not row["healed"] and method in METHODS and grid
        if plain and above > FLOOR:
            found[row["model"], method][round(row["bits"] / row["weights"], 3)] = above
    return {key: sorted(points.items()) for key, points in found.items() if len(points) >= 5}


def held_out(points: list[tuple[float, float]]) -> list[float]:
    """ln(told / measured) of each configuration, by the fit to the others."""
    errors = []
    for index, (bits, delta) in enumerate(points):
        rest = points[:index] + points[index + 1 :]
        law = fit_bits(*zip(*rest, strict=True))
        errors.append(math.log(law.delta(bits) / delta))
    return errors


def main() -> None:
    every: list[float] = []
    print("| model | quantiser | points | bits a factor of e | held out, median, worst factor |")
    print("|---|---|---|---|---|")
    for (model, method), points in sorted(measured().items()):
        law, errors = fit_bits(*zip(*points, strict=True)), np.abs(held_out(points))
        every += [float(e) for e in errors]
        middle, most = (math.exp(float(q)) for q in (np.median(errors), errors.max()))
        row = (model, method, len(points), f"{law.gp:.3f}", f"{middle:.2f}, {most:.2f}")
        print(f"| {' | '.join(map(str, row))} |")
    median, worst = (math.exp(float(q)) for q in (np.median(every), np.max(every)))
    print(f"all: median factor {median:.2f}, worst {worst:.2f}, of {len(every)} held out")
    print(f"the published law: {PTQ.gp:.3f} bits a factor of e")


if __name__ == "__main__":
    main()
