"""The models that are timed: random ones of well-known shapes and the trained ones at hand."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgert.converters.convert import convert
from edgert.kernels.encodings import dequantize, rows_of
from gguf import GGUFReader
from gguf.quants import dequantize as gguf_dequantize

from benchmarks.gguf_copy import write_gguf
from benchmarks.gguf_experts import has_experts, stacks, write_experts
from benchmarks.make_checkpoint import SHAPES, make_checkpoint
from benchmarks.random_bundle import random_bundle as random_codes
from benchmarks.runners import Ids, Runner, SessionRunner
from edgert.bundle import Bundle
from edgert.graph import Graph
from edgert.text.tokenizer import Tokenizer

DIVERGENCE = 0.02  # relative RMS of logits between the programs; above it nothing is timed,
OWN_SPREAD = 1.25  # unless edgert moves nearly as much when only its cache's precision changes,
DIVERGENCE_CAP = 0.05  # and never above this
SAMPLED_ROWS = 64  # of each matrix, compared bit for bit with the GGUF
LARGE = ("4b", "moe")
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
    for key, (layers, columns, _, _, _, words, _, _) in SHAPES.items():
        if (layers, columns, words) == (len(graph.states), width, vocabulary) and key != "tiny":
            return key.removesuffix("-llama")
    return ""


def random_bundle(shape: str, work: Path, quant: str) -> Path:
    """A bundle of random weights, made once: checkpoint `<work>/<shape>`, bundle beside it. Large
    shapes get random codes, without a checkpoint of many gigabytes."""
    out = work / f"{shape}-{quant}.edge"
    if shape in LARGE and not (out / "manifest.json").exists():
        print(f"making a random {shape} bundle ...", flush=True)
        return random_codes(shape, out, quant)
    if not (out / "manifest.json").exists():
        checkpoint = work / shape
        if not (checkpoint / "tokenizer_config.json").exists():
            print(f"making a random {shape} checkpoint ...", flush=True)
            make_checkpoint(shape, checkpoint)
        print(f"converting it to {quant} ...", flush=True)
        convert(
            checkpoint, out, quant=quant, method="rtn", golden=False, force=True, progress=False
        )
    return out


def trained_bundles(work: Path, quant: str) -> list[Path]:
    """Every trained model at hand: the package's checkpoint and what the shared data folder
    holds."""
    from edgert.demo import demo_checkpoint

    root = Path(__file__).resolve().parent.parent
    shared = Path(os.environ.get("EDGERT_SHARED_DATA", root.parent / "shared" / "data"))
    found = sorted(path.parent for path in shared.glob("lm-*/model.safetensors"))
    made = []
    for checkpoint in (demo_checkpoint(), *found):
        out = work / f"{checkpoint.name}-{quant}.edge"
        if not (out / "manifest.json").exists():
            convert(
                checkpoint, out, quant=quant, method="rtn", golden=False, force=True, progress=False
            )
        made.append(out)
    return made


def gguf_of(bundle: Bundle, work: Path) -> Path:
    """The GGUF copy of a bundle, written once for each content."""
    digest = hashlib.sha256(bundle.fingerprint.encode()).hexdigest()[:12]
    target = work / f"{bundle.path.stem}-{digest}.gguf"
    if not target.exists():
        aside = target.with_suffix(".partial")
        graph = bundle.graph()
        write = write_experts if has_experts(graph) else write_gguf
        write(graph, bundle.weights(), aside)
        aside.rename(target)
    return target


def check_bits(bundle: Bundle, path: Path) -> int:
    """Compare the first rows of every matrix that keeps its row order with the GGUF's, dequantized
    by the `gguf` package; how many values were the same. SystemExit where one differs."""
    graph, weights, compared = bundle.graph(), bundle.weights(), 0
    stored = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    linears = [node.weights["weight"] for node in graph.nodes if node.op == "linear"]
    embed = next(node for node in graph.nodes if node.op == "embed").weights["weight"]
    pairs = {"token_embd": weights[embed]}
    experts = [node for node in graph.nodes if node.op == "experts"]
    each = 3 if experts else 4  # linear nodes of a layer
    for layer in range(len(linears) // each):
        names = ("attn_output",) if experts else ("attn_output", "ffn_gate", "ffn_down")
        own = linears[each * layer + 1 :]
        pairs |= {f"blk.{layer}.{n}": weights[own[i]] for i, n in enumerate(names)}
    for layer, node in enumerate(experts):
        pairs |= {f"blk.{layer}.{name}": rows for name, rows in stacks(node, weights).items()}
    if linears[-1] != embed:
        pairs["output"] = weights[linears[-1]]
    for name, held in pairs.items():
        tensor, rows = stored[f"{name}.weight"], slice(0, SAMPLED_ROWS)
        data = tensor.data.reshape(-1, tensor.data.shape[-1])
        theirs = gguf_dequantize(data[rows], tensor.tensor_type)
        ours = dequantize(rows_of(held, rows))
        count = min(len(ours), len(theirs))  # gate: the first half of gate and up
        if not np.array_equal(ours[:count], theirs[:count]):
            raise SystemExit(
                f"{name} in the GGUF is not what the bundle has, expected the same bits"
            )
        compared += ours[:count].size
    return compared


def prompt_of(bundle: Bundle) -> Ids:
    """A real text in the model's own tokens, at most CHECKED of them."""
    ids = Tokenizer.from_bundle(bundle).encode(TEXT)
    count = min(CHECKED, bundle.graph().context - 1)
    return np.array((ids * (1 + CHECKED // len(ids)))[:count], np.int32)


def apart(edgert: Runner, peer: Runner, prompt: Ids) -> dict[str, float]:
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


def divergence(
    edgert: SessionRunner, peer: Runner, prompt: Ids, threads: Sequence[int]
) -> dict[str, Any]:
    """`apart` for each number of threads, the worst of them."""
    found = []
    for count in threads:
        edgert.use(count)
        peer.use(count)
        found.append(apart(edgert, peer, prompt))
    return max(found, key=lambda one: one["relative_rms"])


def own_spread(bundle: Bundle, edgert: SessionRunner, prompt: Ids) -> float:
    """Relative RMS between edgert with its usual and with a 32-bit cache.

    Activations are rounded to 8 bits at every matrix, so in a deep model of random weights the
    smallest difference flips codes and grows to the size of that rounding: two programs that are
    both right are not closer than this.
    """
    exact = SessionRunner(bundle, (edgert.current,), context=len(prompt), kv_bits=32)
    try:
        return apart(edgert, exact, prompt)["relative_rms"]
    finally:
        exact.close()


def allowed(spread: float) -> float:
    """The relative RMS above which two programs do not run the same model."""
    return min(max(DIVERGENCE, OWN_SPREAD * spread), DIVERGENCE_CAP)


def said(found: dict[str, Any]) -> str:
    """A divergence in words."""
    return (
        f"{found['relative_rms']:.3%} apart (worst position {found['worst_position']:.2%}), best "
        f"token the same at {found['argmax_agreement']:.1%} of {found['positions']} positions"
    )
