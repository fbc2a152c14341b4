"""Tables of `benchmarks/COMPRESSION.md`, from the lines of `benchmarks.compression`,
`benchmarks.compression_speed` and `benchmarks.compression_small`.

    python -m benchmarks.compression_page            rewrite the tables
    python -m benchmarks.compression_page --print    print them only

Text outside the marked regions is written by hand and stays.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.results import FOLDER, read_lines, rewritten, table

PAGE = FOLDER / "COMPRESSION.md"
NEAR = 0.02  # share of bits by which a row may be larger and still count as of the same size
MODELS = ("lm-edgert-24m-think", "lm-edgert-60m")
PAIRS = (
    ("uint2-g64", "Q2_K"), ("uint3-g64", "Q3_K_M"), ("int4-g32", "Q4_0"), ("int4-g32", "Q4_K_M"),
    ("int6-g64", "Q6_K"),
)  # fmt: skip
Line = dict[str, Any]


def latest(lines: Sequence[Line]) -> list[Line]:
    """The last line of each key; of several lengths of the examination the longest."""
    longest: dict[str, int] = {}
    for line in lines:
        longest[line["model"]] = max(longest.get(line["model"], 0), line["text_bytes"])
    found = {x["key"]: x for x in lines if x["text_bytes"] == longest[x["model"]]}
    return list(found.values())


def of_model(lines: Sequence[Line], model: str) -> list[Line]:
    return [line for line in lines if line["model"] == model]


def dense_of(lines: Sequence[Line]) -> float:
    return float(next(x for x in lines if x["method"] == "dense f32")["bits_per_byte"])


def bits(line: Line) -> float:
    return float(line["bits"] / line["weights"])


def is_factored(line: Line) -> bool:
    return line["method"].split()[0].split("-")[0] in ("svd", "compot", "cospadi")


def quality_rows(lines: Sequence[Line], dense: float) -> Iterator[list[str]]:
    for x in sorted(lines, key=lambda x: (-bits(x), x["bits_per_byte"])):
        healed = f", healed {x['healed'] / 1e6:g}M" if x["healed"] else ""
        types = ", ".join(f"{n} {kind}" for kind, n in sorted(x.get("types", {}).items()))
        peak = f"{x['peak_bytes'] / 1e6:.0f}" if x.get("peak_bytes") else ""
        yield [
            x["side"], x["method"] + healed, f"{bits(x):.3f}", f"{x['file_bytes'] / 1e6:.2f}",
            f"{x['bits_per_byte']:.4f}", f"{x['bits_per_byte'] - dense:+.4f}",
            f"{100 * x['blimp']:.1f}", f"{x['seconds']:.1f}", peak, types or x.get("note", ""),
        ]  # fmt: skip


HEAD = (
    "program", "method", "bits a weight", "file, MB", "bits a byte", "above dense", "BLiMP, %",
    "CPU s", "peak, MB", "note",
)  # fmt: skip


def quality_table(lines: Sequence[Line], *, factored: bool, low: bool = False) -> str:
    dense = dense_of(lines)

    def fits(x: Line) -> bool:
        own = is_factored(x)
        return own == factored and (not own or ("refit a" in x["method"]) == low)

    return table(HEAD, quality_rows([x for x in lines if fits(x)], dense))


def is_bundle(line: Line) -> bool:
    return bool(line["method"].startswith("bundle "))


def healed_table(lines: Sequence[Line]) -> str:
    """Bundles by bits a weight: above dense as they are, and after each kind of healing."""
    dense, names = dense_of(lines), dict[str, dict[str, Line]]()
    for x in filter(is_bundle, lines):
        _, name, *update = x["method"].split()
        names.setdefault(name, {})[update[0] if update else ""] = x
    rows = []
    for name, found in sorted(names.items(), key=lambda item: -bits(next(iter(item[1].values())))):
        first = next(iter(found.values()))
        tokens = max(x["healed"] for x in found.values())
        cells = [
            f"{found[update]['bits_per_byte'] - dense:+.4f} ({100 * found[update]['blimp']:.1f} %)"
            if update in found
            else None
            for update in ("", "scales", "straight-through")
        ]
        seconds = [f"{x['heal_seconds']:.0f}" for x in found.values() if "heal_seconds" in x]
        rows.append([
            name, f"{bits(first):.3f}", f"{first['file_bytes'] / 1e6:.2f}", *cells,
            f"{tokens / 1e6:g}M" if tokens else None, " and ".join(seconds),
        ])  # fmt: skip
    head = ("bundle", "bits a weight", "MB", "as it is", "scales healed", "codes too", "tokens")
    return table((*head, "s of healing"), rows)


def factor_table(lines: Sequence[Line]) -> str:
    """Bits a byte above dense, a row a method and a column a ratio, in fp16 factors."""
    dense = dense_of(lines)
    cells: dict[str, dict[str, str]] = {}
    ratios: set[str] = set()
    for x in lines:
        if not is_factored(x) or "refit a" in x["method"] or x["healed"]:
            continue
        words = x["method"].split()
        at = next(word for word in words if word.replace(".", "").isdigit())
        name = " ".join(word for word in words if word != at)
        ratios.add(at)
        cells.setdefault(name, {})[at] = (
            f"{x['bits_per_byte'] - dense:+.4f} ({100 * x['blimp']:.1f} %, {x['seconds']:.0f} s)"
        )
    order = sorted(ratios, key=float)
    rows = [[name, *(row.get(at) for at in order)] for name, row in sorted(cells.items())]
    return table(["method", *(f"CR {at}" for at in order)], rows)


def best_at(lines: Sequence[Line], limit: float, key: str) -> Line | None:
    """The best unhealed edgert row whose size `key` is within NEAR of `limit`."""
    own = [x for x in lines if x["side"] == "edgert" and not x["healed"]]
    own = [x for x in own if size(x, key) <= limit * (1 + NEAR)]
    return min(own, key=lambda x: float(x["bits_per_byte"]), default=None)


def size(line: Line, key: str) -> float:
    return bits(line) if key == "bits" else float(line[key])


def against(lines: Sequence[Line]) -> str:
    """Each of llama.cpp's types and edgert's best row of no more bits a block weight, and of no
    more bytes altogether."""
    dense, rows = dense_of(lines), []
    theirs = [x for x in lines if x["side"] == "llama.cpp"]
    for x in sorted(theirs, key=bits):
        cells = [x["method"], f"{bits(x):.2f}", f"{x['file_bytes'] / 1e6:.2f}",
                 f"{x['bits_per_byte'] - dense:+.4f}"]  # fmt: skip
        for key in ("bits", "file_bytes"):
            best = best_at(lines, size(x, key), key)
            cells.append("none" if best is None else (
                f"{best['method']}: {bits(best):.2f}, {best['file_bytes'] / 1e6:.2f} MB, "
                f"{best['bits_per_byte'] - dense:+.4f}"
            ))  # fmt: skip
        rows.append(cells)
    return table(
        ("llama.cpp", "bits a weight", "MB", "above dense", "edgert, no more bits a weight",
         "edgert, no more bytes"), rows,
    )  # fmt: skip


def ratio(rows: dict[str, Any], ours: str, theirs: str) -> float:
    """How many times as fast `ours` is: the median over rounds."""
    a, b = (np.array(rows[name]["rounds_ms"]) for name in (ours, theirs))
    return float(np.median(b / a))


def speed_table(lines: Sequence[Line]) -> str:
    rows = []
    for line in {x["model"]: x for x in lines}.values():
        found: Mapping[str, Any] = line["rows"]
        for ours, theirs in PAIRS:
            a, b = f"edgert {ours}", f"llama.cpp {theirs}"
            if a in found and b in found:
                rows.append([
                    line["model"], ours, f"{found[a]['bits_per_weight']:.2f}",
                    f"{1e3 / found[a]['ms']:.1f}", theirs, f"{found[b]['bits_per_weight']:.2f}",
                    f"{1e3 / found[b]['ms']:.1f}", f"{ratio(found, a, b):.2f}",
                    f"{line['run']['other_cores']:.1f}",
                ])  # fmt: skip
    return table(
        ("model", "edgert", "bits", "tokens/s", "llama.cpp", "bits", "tokens/s",
         "edgert / llama.cpp", "cores others used"), rows,
    )  # fmt: skip


def small_table(lines: Sequence[Line]) -> str:
    """The small byte model: nats a byte above dense by bits a weight."""
    rows = [
        [x["method"], f"{bits(x):.2f}", f"{x['above_dense']:+.4f}", f"{x['seconds']:.1f}"]
        for x in sorted(lines, key=lambda x: (-bits(x), float(x["above_dense"])))
    ]
    return table(("method", "bits a weight", "nats a byte above dense", "CPU s"), rows)


def sections() -> dict[str, str]:
    lines = latest(read_lines("compression"))
    found = {
        "speed": speed_table(read_lines("compression_speed")),
        "small": small_table(read_lines("compression_small")),
    }
    for model in MODELS:
        some = of_model(lines, model)
        if any(x["method"] == "dense f32" for x in some):
            found[f"healed {model}"] = healed_table(some)
            some = [x for x in some if not is_bundle(x)]
            found[f"against {model}"] = against(some)
            found[f"quantized {model}"] = quality_table(some, factored=False)
            found[f"factored {model}"] = factor_table(some)
            found[f"factored low {model}"] = quality_table(some, factored=True, low=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--print", action="store_true", dest="only_print")
    args = parser.parse_args()
    found = sections()
    if args.only_print:
        for name, text in found.items():
            print(f"## {name}\n\n{text}\n")
        return
    PAGE.write_text(rewritten(PAGE.read_text("utf-8"), found), encoding="utf-8")
    print(f"{PAGE.name}: {sum(len(text.splitlines()) for text in found.values())} lines")


if __name__ == "__main__":
    main()
