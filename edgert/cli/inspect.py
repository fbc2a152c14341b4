"""`edgert inspect`: what a checkpoint or bundle holds and needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import RequestError
from .settings import emit_json, json_option, megabytes

if TYPE_CHECKING:
    from ..bundle.describe import Description


@click.command("inspect")
@click.argument("source", type=click.Path(readable=False))
@click.option(
    "--device", help="Also say on which provider each node of a bundle's ONNX model would run."
)
@click.option(
    "--profile", metavar="NAME",
    help="Also say what to expect of a bundle on a device: a profile, by name or file.",
)  # fmt: skip
@json_option
def command(source: str, device: str | None, profile: str | None, as_json: bool) -> int:
    """Say what SOURCE holds and what it takes: a bundle, a checkpoint directory or a hub id; or the
    settings of a picture that edgert drew."""
    if source.lower().endswith(".png") and Path(source).is_file():
        return _picture(Path(source), as_json=as_json)
    from ..bundle.describe import inspect

    found = inspect(source)
    placed = _placement(Path(source), device) if device else []
    expected = _expected(Path(source), profile) if profile else []
    if as_json:
        extra = {"placement": placed} if device else {}
        extra |= {"expected": expected} if profile else {}
        emit_json({"schema": 1, **found.to_dict(), **extra})
        return 0
    lines = _pictures(found) if found.model == "image" else _text(found)
    for name, text in lines.items():
        click.echo(f"{name:11} {text}")
    for row in expected:
        click.echo(f"{'expected':11} {row['name']} {row['value']:.4g} {row['unit']}, 90 %: "
                   f"{row['low']:.4g} to {row['high']:.4g}, on {row['device']}")  # fmt: skip
    for provider in sorted({node["provider"] for node in placed}):
        mine = [node for node in placed if node["provider"] == provider]
        counts = Counter(node["op"] for node in mine)
        ops = ", ".join(f"{count} {op}" for op, count in counts.most_common())
        click.echo(f"{'runs on':11} {provider}: {len(mine)} nodes ({ops})")
    return 0


def _expected(bundle: Path, name: str) -> list[dict[str, Any]]:
    """Times and memory on a device, as `edgert test --predict` finds them."""
    from ..budget.limits import budget_of
    from ..budget.predict import predict
    from ..devices.load import load

    profile = load(name)
    limits = budget_of(
        {"p50_token_ms": 1.0, "p50_ttft_ms": {512: 1.0}, "picture_s": 1.0, "load_s": 1.0,
         "cold_start_s": 1.0, "peak_mb": 1.0}
    )  # fmt: skip
    return [
        {"name": v.label.removeprefix("p50_"), "value": v.value, "low": v.low, "high": v.high,
         "unit": v.unit, "device": profile.label}
        for v in predict(bundle, limits, profile)
        if v.value is not None
    ]  # fmt: skip


def _text(found: Description) -> dict[str, str]:
    """What is told of a language model."""
    held = _listed(_merged(found.encodings))
    lines = {
        found.kind: f"{found.name} ({found.path})",
        "layers": str(found.layers),
        "parameters": f"{found.parameters:,}",
        "vocabulary": f"{found.vocabulary:,}",
        "context": f"{found.context:,} tokens",
        "weights": f"{megabytes(found.weights)}: {held}",
        "cache": f"{found.cache_per_token:,} bytes a token at 16 bits, "
        f"{megabytes(found.cache_per_token * found.context)} for a full context",
    }
    if found.state_bytes:
        lines["states"] = f"{megabytes(found.state_bytes)} a sequence, of any length"
    if found.converted:
        lines["converted"] = _listed(found.converted)
    else:
        lines["memory"] = f"about {megabytes(found.memory)} with a full context"
        lines["made by"] = str(found.provenance.get("command", ""))
    if found.packed:
        lines["sparse"] = f"on the CPU read as {_listed(found.packed)}"
    return lines


def _pictures(found: Description) -> dict[str, str]:
    """What is told of a picture pipeline."""
    how, names = found.picture, f" ({found.picture['labels']} names)"
    asked = how["conditioning"] or "nothing"
    lines = {
        found.kind: f"{found.name} ({found.path})",
        "makes": "image" if not how.get("width") else f"image, {how['width']} x {how['height']}",
        "asked by": asked + (names if how["labels"] else ""),
        "sampled": f"{how['scheduler'] or 'as asked'}, {how.get('steps', '?')} steps, guidance "
        f"{how.get('guidance', '?')}",
        "parameters": f"{found.parameters:,}",
        "weights": f"{megabytes(found.weights)}: {_listed(_merged(found.encodings))}",
        "parts": _listed(found.parts),
    }
    if found.kind == "bundle":
        lines["made by"] = str(found.provenance.get("command", ""))
    return lines


def _picture(path: Path, *, as_json: bool) -> int:
    """The settings that a PNG carries."""
    from ..errors import printable
    from ..image.pictures import read_settings

    settings = read_settings(path)
    if settings is None:
        raise RequestError(
            f"{path} carries no settings of edgert, expected a PNG that `edgert image` wrote",
            code="image-settings",
            hint="other programs remove them when they save a picture again",
        )
    if as_json:
        emit_json({"schema": 1, "picture": str(path), "settings": settings})
        return 0
    for name, value in settings.items():
        click.echo(f"{printable(name[:40]):15} {printable(str(value))}")
    return 0


def _listed(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items())


def _merged(encodings: Mapping[str, int]) -> dict[str, int]:
    """Sizes with sparse codes of as many bits together, whatever the number of kept values."""
    from ..kernels.sparse import parse

    counts: dict[str, list[int]] = {}
    sizes: Counter[str] = Counter()
    for name, size in encodings.items():
        form = parse(name)
        key = f"sparse{form.bits}" if form else name
        sizes[key] += size
        counts.setdefault(key, []).extend([form.count] if form else [])
    ends = {key: f"-s{min(c)}" + f" to -s{max(c)}" * (len(c) > 1) for key, c in counts.items() if c}
    return {key + ends.get(key, ""): size for key, size in sizes.items()}


def _placement(bundle: Path, device: str) -> list[dict[str, Any]]:
    """Provider, op and name of every node, before onnxruntime merges them; of all parts and pieces
    of a model that draws."""
    from ..bundle.reader import Bundle
    from ..image.emissions import placed_graphs
    from ..session.ort import place

    with Bundle.open(bundle) as opened:
        if opened.manifest.kind != "image":
            return [node._asdict() for node in place(opened, device)]
        return [
            node._asdict()
            for part in sorted(opened.manifest.parts)
            for node in place(opened, device, part, placed_graphs(opened, part))
        ]
