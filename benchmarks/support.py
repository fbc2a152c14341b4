"""The README's support table: families, sources, encodings, and what they were tested against.

Written from the registries and from the tests' own lists by `python -m benchmarks.readme`. The
version of transformers is that of the last `python -m benchmarks.support`, which is run behind the
tests: it notes the installed one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path

from edgert.converters.families import COMPOSITES, FAMILIES
from edgert.converters.sources.gguf_architectures import ARCHITECTURES
from edgert.converters.sources.packed_formats import METHODS
from edgert.kernels.encodings import ENCODINGS, asked

TESTED = Path(__file__).resolve().parent / "tested.json"
OWN = {"2mamba": "edgert's own formulas"}  # families that transformers does not have


def described(kind: str, module: str) -> str:
    """A family in the words of its module."""
    said = import_module(f"edgert.converters.families.{module}").__doc__ or ""
    said = said.split("\n\n")[0].removeprefix(f"{module}:").removeprefix(f"{kind}:")
    return " ".join(said.split()).rstrip(".")


def checkpoints() -> Counter[str]:
    """How many tiny random checkpoints the tests compare with transformers, by model_type."""
    import transformers

    from tests.converters.checkpoints import CASES

    return Counter(getattr(transformers, kind).model_type for kind, _ in CASES.values())


def published() -> dict[str, list[str]]:
    """Models of which the tests have the config, shrunken, by model_type."""
    from tests.converters.published import CONFIGS

    found: dict[str, list[str]] = {}
    for name, config in CONFIGS.items():
        found.setdefault(config["model_type"], []).append(name)
    return found


def _by_family(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for family, name in sorted(set(pairs)):
        found.setdefault(family, []).append(f"`{name}`")
    return found


def family_table() -> str:
    """One row a family: what it is, where it is read from, what it was compared with."""
    gguf = _by_family(
        (kind, name) for name, row in ARCHITECTURES.items() for kind in (row.model_type, *row.also)
    )
    whole = _by_family((text, name) for name, c in COMPOSITES.items() for text in c.texts.values())
    tiny, shapes = checkpoints(), published()
    rows = [
        "| `model_type` | Models | GGUF | Text of | Random checkpoints | Published configs |",
        "|---|---|---|---|---|---|",
    ]
    for kind, module in sorted(FAMILIES.items()):
        cells = [
            kind,
            described(kind, module),
            ", ".join(gguf.get(kind, ["–"])),
            ", ".join(whole.get(kind, ["–"])),
            str(tiny[kind]) if tiny[kind] else OWN[kind],
            ", ".join(shapes.get(kind, ["–"])),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([*rows, "", *notes()])


def notes() -> list[str]:
    """What holds for every row: how it is tested, further sources, encodings."""
    from tests.converters.test_families import LENGTHS, RMS

    versions: Mapping[str, str] = json.loads(TESTED.read_text(encoding="utf-8"))
    methods = ", ".join(f"`{name}`" for name in sorted(METHODS) if name != "mxfp4")
    offered = ", ".join(f"`{name}`" for name in asked())
    kernels = sum(row.cpu is not None for row in ENCODINGS.values())
    emitted = sum(bool(row.plain or row.onnx_bits) for row in ENCODINGS.values())
    lengths = f"{', '.join(map(str, LENGTHS[:-1]))} and {LENGTHS[-1]}"
    return [
        f"Tested against transformers {versions['transformers']}: f32 logits of {lengths} tokens "
        f"within {RMS:.0e} relative RMS, those of chunks and batches equal to those of single "
        f"tokens. Every family is also read from safetensors in codes of {methods}; experts in "
        "`mxfp4`, as gpt-oss is published.",
        "",
        f"Encodings are the same for every family. `--quant` takes {offered}; the CPU has kernels "
        f"for {kernels} encodings, and for sparse weights and GGUF's blocks besides; ONNX models "
        f"hold {emitted} of them.",
    ]


def main() -> None:
    import transformers

    TESTED.write_text(json.dumps({"transformers": transformers.__version__}) + "\n", "utf-8")


if __name__ == "__main__":
    main()
