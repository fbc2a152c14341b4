"""`edgert demo`: what edgert is for, shown in about a minute with the models in this package.

The chat model is written out as the f16 checkpoint it would be elsewhere, converted, measured and
asked; all of it in a temporary folder that is gone in the end. The drawing model draws a picture,
which stays.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from .sampling import read_answer
from .settings import emit_json, json_option, megabytes, show

QUESTION = "Tom has 5 apples. He buys 7 more and gives 4 to Anna. How many apples does Tom have?"
PROMPT, ANSWER, REPETITIONS = 256, 32, 3  # tokens of the speed test, and how often
CAPTION, SEED, PICTURE = "a red apple left of a cat, 3d style", 3, "edgert-demo.png"
NEXT = {
    "edgert chat": "talk with this model",
    'edgert image -p "a castle"': "draw another picture",
    "edgert convert HuggingFaceTB/SmolLM2-135M-Instruct -o smol.edge": "convert a larger one",
    "edgert chat smol.edge": "talk with that",
    "edgert bench smol.edge": "how fast it is here",
    "edgert doctor": "what this machine can do",
}


@click.command("demo")
@click.option("-n", "--max-tokens", default=200, show_default=True, type=click.IntRange(1),
              help="Longest answer.")  # fmt: skip
@click.option("-t", "--threads", type=click.IntRange(1), metavar="N",
              help="Default: one per performance core.")  # fmt: skip
@click.option("-o", "--output", default=PICTURE, show_default=True,
              type=click.Path(path_type=Path), help="The picture that is drawn.")  # fmt: skip
@json_option
def command(max_tokens: int, threads: int | None, output: Path, as_json: bool) -> int:
    """Show what edgert does, with the models in this package: size, quality, speed, an answer, a
    picture.

    Takes about a minute the first time, when kernels are compiled. Nothing is downloaded. What is
    made is removed again, but for the picture; the cache keeps compiled kernels and these models
    packed for the CPU, as `edgert chat` and `edgert image` do.
    """
    from .image import check_output

    check_output(output)
    from ..storage.hash_cache import HashCache

    with tempfile.TemporaryDirectory(prefix="edgert-demo-") as name:
        try:
            found, cut = _shown(Path(name), max_tokens, threads, output, as_json=as_json)
        finally:
            HashCache().forget(Path(name))
    if as_json:
        emit_json({"schema": 3, **found, "next": list(NEXT)})
    elif not cut:
        width = max(map(len, NEXT))
        click.echo("\nType next")
        for line, why in NEXT.items():
            click.echo(f"  {line:<{width}}  {why}")
    return 130 if cut else 0


def _shown(
    folder: Path, max_tokens: int, threads: int | None, output: Path, *, as_json: bool
) -> tuple[dict[str, Any], bool]:
    """Everything that is shown, in order: as a JSON object, and whether Ctrl-C ended it."""
    from ..demo import quality

    def tell(text: str) -> None:
        if not as_json:
            click.echo(text)

    found: dict[str, Any] = {"model": _model()}
    tell(_model_text(found["model"]))
    checkpoint, small, found["conversion"] = _converted(folder, threads)
    tell(_size_text(found["conversion"]))
    found["quality"] = quality()
    tell(_quality_text(found["quality"]))
    found["speed"] = _speed(folder, checkpoint, small, threads)
    tell(_speed_text(found["speed"]))
    tell(f"\nAn answer, with the thinking before it (greedy)\n  > {QUESTION}")
    write = (lambda piece: None) if as_json else show
    answer, cut = _asked(small, max_tokens, threads, write)
    t, used = answer["timings"], answer["completion_tokens"]
    tell(f"\n  ({used} tokens, the first after {t['first_token_s'] * 1e3:.0f} ms)")
    found["answer"] = answer
    if not cut:
        found["picture"] = _drawn(output, threads, show=not as_json)
        tell(_picture_text(found["picture"]))
    return found, cut


def _drawn(output: Path, threads: int | None, *, show: bool) -> dict[str, Any]:
    """A picture by the drawing model, written to `output` and shown in terminals that can."""
    import sys

    from ..api import load
    from ..demo import image_bundle
    from ..image import terminal

    with load(image_bundle(), threads=threads, kind="image") as model:
        made = model(CAPTION, seed=SEED)
    made.save(0, output)
    if show and (way := terminal.way_of(sys.stdout)):
        sys.stdout.write("\n" + terminal.text_of(made[0], way))
    return {
        "file": str(output), "settings": made.settings_of(0), "evaluations": made.evaluations,
        "timings": made.timings,
    }  # fmt: skip


def _picture_text(found: Mapping[str, Any]) -> str:
    t, settings = found["timings"], found["settings"]
    return (
        f"\nA picture: {found['file']}\n  > {settings['prompt']}\n"
        f"  ({settings['width']} x {settings['height']}, {settings['steps']} steps, of which "
        f"{found['evaluations']:g} were computed, in {sum(t.values()):.1f} s)"
    )


def _model() -> dict[str, Any]:
    from ..bundle.describe import inspect
    from ..demo import LICENCE, NAME, demo_bundle

    path = demo_bundle()
    about = inspect(path)
    return {
        "name": NAME,
        "bundle": str(path),
        "card": str(path / "README.md"),
        "licence": LICENCE,
        "parameters": about.parameters,
        "context": about.context,
    }


def _model_text(model: Mapping[str, Any]) -> str:
    return (
        f"{model['name']}: a chat model of {model['parameters'] / 1e6:.1f} M parameters, context "
        f"{model['context']} tokens; it came with edgert.\n"
        f"Weights under {model['licence']}; its card: {model['card']}"
    )


def _converted(folder: Path, threads: int | None) -> tuple[Path, Path, dict[str, Any]]:
    """The checkpoint, the bundle made from it, and what the conversion did."""
    from ..bundle.reader import Bundle
    from ..converters.convert import convert
    from ..demo import NAME, demo_bundle
    from ..machine.doctor import folder_bytes
    from .demo_checkpoint import write_checkpoint

    with Bundle.open(demo_bundle()) as shipped:
        checkpoint = write_checkpoint(shipped, folder / NAME)
        files = {name: entry.sha256 for name, entry in shipped.manifest.files.items()}
    out = folder / f"{NAME}.edge"
    report = convert(checkpoint, out, method="rtn", golden=False, progress=False, threads=threads)
    with Bundle.open(out) as made:
        weights = made.manifest.files["weights.safetensors"].sha256
    return checkpoint, out, {
        "checkpoint_bytes": folder_bytes(checkpoint),
        "bundle_bytes": folder_bytes(out),
        "quant": report.quant,
        "embed_quant": report.embed_quant,
        "seconds": report.seconds,
        "peak_rss": report.peak_rss,
        "same_weights_as_shipped": weights == files["weights.safetensors"],
    }  # fmt: skip


def _size_text(done: Mapping[str, Any]) -> str:
    before, after = done["checkpoint_bytes"], done["bundle_bytes"]
    encodings = f"{done['quant']}, embedding {done['embed_quant']}"
    same = "the weights that ship, byte for byte" if done["same_weights_as_shipped"] else ""
    return (
        f"\nSize\n"
        f"  before  {megabytes(before):>8}  checkpoint, f16, written out of the package's bundle\n"
        f"  after   {megabytes(after):>8}  bundle, {encodings}: {after / before:.0%}\n"
        f"  converted just now in {done['seconds']:.1f} s with {megabytes(done['peak_rss'])} of "
        f"memory{': ' + same if same else ''}"
    )


def _quality_text(found: Mapping[str, Any]) -> str:
    rows = found["rows"]
    width = max(len(row["measure"]) for row in rows)
    lines = [f"\nQuality kept (measured {found['measured']}, see the card)",
             f"  {'':<{width}}  {'f16':>7}  {'int4':>7}"]  # fmt: skip
    for row in rows:
        cells = "  ".join(
            f"{row[engine]:>7.1%}" if row["unit"] == "share" else f"{row[engine]:>7.3f}"
            for engine in ("f16", "int4")
        )
        lines.append(f"  {row['measure']:<{width}}  {cells}  {row['items']}")
    return "\n".join(lines)


def _speed(folder: Path, checkpoint: Path, small: Path, threads: int | None) -> dict[str, Any]:
    """Tokens a second of the f16 and the int4 bundle, one after the other on this machine."""
    from ..converters.convert import convert
    from ..machine import bench

    large = folder / "f16.edge"
    convert(checkpoint, large, quant="f16", golden=False, progress=False, threads=threads)
    plan = bench.Plan(PROMPT, ANSWER, threads=(threads,), repetitions=REPETITIONS)
    found: dict[str, Any] = {}
    try:
        for name, path in (("f16", large), ("int4", small)):
            read, write = bench.run(path, plan).rows
            found["threads"] = read.threads
            found[name] = {"read_tps": read.tps_median, "write_tps": write.tps_median}
    finally:
        _forget_packed(large)
    return found


def _forget_packed(path: Path) -> None:
    """The CPU session keeps weights as its kernels read them: no use for a bundle that goes."""
    from ..bundle.reader import Bundle
    from ..session.packed import forget
    from ..storage.cachedir import cache_root

    with Bundle.open(path) as bundle:
        forget(cache_root() / "packed", bundle.manifest.files["weights.safetensors"].sha256)


def _speed_text(found: Mapping[str, Any]) -> str:
    rows = [f"\nSpeed here, tokens a second, {found['threads']} threads",
            f"  {'':<6}  {'f16':>7}  {'int4':>7}"]  # fmt: skip
    for word, key in (("reads", "read_tps"), ("writes", "write_tps")):
        before, after = found["f16"][key], found["int4"][key]
        rows.append(f"  {word:<6}  {before:>7.0f}  {after:>7.0f}  {after / before:.1f} times")
    return "\n".join(rows)


def _asked(
    path: Path, max_tokens: int, threads: int | None, write: Callable[[str], None]
) -> tuple[dict[str, Any], bool]:
    """The question, answered by the new bundle, shown as it is written."""
    from ..api import load
    from .generate import answer_object

    with load(path, threads=threads) as model:
        messages = [{"role": "user", "content": QUESTION}]
        stream = model.stream_chat(messages, temperature=0.0, max_tokens=max_tokens)
        answer, cut = read_answer(model, stream, write)
    return {"prompt": QUESTION} | answer_object(path, answer), cut
