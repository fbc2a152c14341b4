"""The models that are timed: bundles at hand, random ones of well-known shapes, the trained ones."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.convert import convert

from benchmarks.gguf_twin import write_gguf
from benchmarks.make_checkpoint import SHAPES, make_checkpoint
from benchmarks.runners import Ids, LlamaRunner, SessionRunner
from edgert.bundle import Bundle
from edgert.graph import Graph
from edgert.text.tokenizer import Tokenizer

DIVERGENCE = 0.02  # relative RMS of logits between the programs; above it nothing is timed
CHECKED, SINGLE = 192, 16  # tokens compared, of which the last ones are fed one by one
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, "
    "must be in want of a wife. However little known the feelings or views of such a man may be on "
    "his first entering a neighbourhood, this truth is so well fixed in the minds of the "
    "surrounding families, that he is considered as the rightful property of some one or other of "
    'their daughters. "My dear Mr. Bennet," said his lady to him one day, "have you heard that '
    'Netherfield Park is let at last?" Mr. Bennet replied that he had not. "But it is," returned '
    'she; "for Mrs. Long has just been here, and she told me all about it."'
)


def shape_of(graph: Graph) -> str:
    """The key of `SHAPES` that a graph has the dimensions of, else ""."""
    embed = next(node for node in graph.nodes if node.op == "embed").weights["weight"]
    vocabulary, width = graph.weights[embed].shape
    for key, (layers, wide, _, _, _, words, _, _) in SHAPES.items():
        if (layers, wide, words) == (len(graph.states), width, vocabulary) and key != "tiny":
            return key.removesuffix("-llama")
    return ""


def random_bundle(shape: str, work: Path, quant: str) -> Path:
    """A bundle of random weights, made once: checkpoint `<work>/<shape>`, bundle beside it."""
    out = work / f"{shape}-{quant}.edge"
    if not (out / "manifest.json").exists():
        checkpoint = work / shape
        if not (checkpoint / "tokenizer_config.json").exists():
            print(f"making a random {shape} checkpoint ...", flush=True)
            make_checkpoint(shape, checkpoint)
        print(f"converting it to {quant} ...", flush=True)
        convert(checkpoint, out, quant=quant, golden=False, force=True, progress=False)
    return out


def trained_bundles(work: Path, quant: str) -> list[Path]:
    """Every trained model at hand: the demo's, and what the shared data folder holds."""
    from edgert.demo import demo_checkpoint

    root = Path(__file__).resolve().parent.parent
    shared = Path(os.environ.get("EDGERT_SHARED_DATA", root.parent / "shared" / "data"))
    found = [demo_checkpoint()]
    found += sorted(path.parent for path in shared.glob("lm-*/model.safetensors"))
    made = []
    for checkpoint in found:
        out = work / f"{checkpoint.name}-{quant}.edge"
        if not (out / "manifest.json").exists():
            convert(checkpoint, out, quant=quant, golden=False, force=True, progress=False)
        made.append(out)
    return made


def gguf_of(bundle: Bundle, work: Path) -> Path:
    """The GGUF twin of a bundle, written once for each content."""
    digest = hashlib.sha256(bundle.fingerprint.encode()).hexdigest()[:12]
    target = work / f"{bundle.path.stem}-{digest}.gguf"
    if not target.exists():
        aside = target.with_suffix(".partial")
        write_gguf(bundle.graph(), bundle.weights(), aside)
        aside.rename(target)
    return target


def prompt_of(bundle: Bundle) -> Ids:
    """A real text in the model's own tokens, at most CHECKED of them."""
    ids = Tokenizer.from_bundle(bundle).encode(TEXT)
    room = min(CHECKED, bundle.graph().context - 1)
    return np.array((ids * (1 + CHECKED // len(ids)))[:room], np.int32)


def apart(edgert: SessionRunner, peer: Any, prompt: Ids) -> dict[str, float | int]:
    """How far two programs' logits are apart over a prompt, most of it fed together, the end of it
    token by token: relative RMS over all, of the worst position, and how often the best token is
    the same."""
    found = []
    for runner in (edgert, peer):
        runner.trim(0)
        rows = [np.array(runner.step(prompt[:-SINGLE], every=True))]
        rows += [np.array(runner.step(token)) for token in prompt[-SINGLE:, None]]
        runner.trim(0)
        found.append(np.concatenate(rows).astype(np.float64))
    ours, theirs = found
    error, power = np.mean((ours - theirs) ** 2, axis=1), np.mean(theirs**2, axis=1)
    same = ours.argmax(axis=1) == theirs.argmax(axis=1)
    return {
        "positions": len(prompt),
        "relative_rms": float(np.sqrt(error.mean() / power.mean())),
        "worst_position": float(np.sqrt((error / power).max())),
        "argmax_agreement": float(same.mean()),
    }


def llama_divergence(
    edgert: SessionRunner, llama: LlamaRunner, prompt: Ids, threads: list[int]
) -> dict[str, Any]:
    """`apart` for each number of threads, the worst of them."""
    worst: dict[str, Any] = {}
    for count in threads:
        edgert.use(count)
        llama.use(count)
        found = apart(edgert, llama, prompt)
        if not worst or found["relative_rms"] > worst["relative_rms"]:
            worst = found
    return worst


def said(found: dict[str, Any]) -> str:
    """A divergence in words."""
    return (
        f"{found['relative_rms']:.3%} apart (worst position {found['worst_position']:.2%}), best "
        f"token the same at {found['argmax_agreement']:.1%} of {found['positions']} positions"
    )
