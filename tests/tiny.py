"""A tiny random Llama-like model made by hand: graph, weights, tokenizer, bundle.

    bundle_path = tiny_bundle(tmp_path / "tiny.edge", quant="mixed")

The tokenizer is byte level: 256 byte tokens after 4 special ones, so any text round-trips.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from edgert.kernels import encodings
from edgert.kernels.quant import Matrix
from edgert.kernels.states import KVState

from edgert.bundle import FORMAT, BundleWriter, Golden, Manifest, Part, Provenance, TextSpec
from edgert.bundle.check import tensors_of
from edgert.graph import Graph, Node, Value, Weight
from edgert.roles import vocab_size
from edgert.storage.safetensors_writer import TensorWriter, aligned_order

SPECIAL = ("<|bos|>", "<|eos|>", "<|user|>", "<|assistant|>")
VOCAB = 260
BOS, EOS = 0, 1
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|user|>' if m['role'] == 'user' else '<|assistant|>' }}{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Encodings by role of the matrix; "mixed" holds one of each kind the format knows.
MIXES: Mapping[str, Mapping[str, str]] = {
    "f32": dict.fromkeys(("embed", "qkv", "o", "gate_up", "down"), "f32"),
    "f16": dict.fromkeys(("embed", "qkv", "o", "gate_up", "down"), "f16"),
    "int8": dict.fromkeys(("embed", "qkv", "o", "gate_up", "down"), "int8-g32"),
    "int4": dict.fromkeys(("qkv", "o", "gate_up", "down"), "int4-g32") | {"embed": "int8-g32"},
    "mixed": {
        "embed": "int8-g32",
        "qkv": "int4-g32",
        "o": "f32",
        "gate_up": "int4-g32",
        "down": "f16",
    },
}


def tiny_graph(
    *,
    vocab: int = VOCAB,
    width: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    ff: int = 96,
    layers: int = 2,
    context: int = 128,
    window: int = 0,
    tied: bool = True,
    quant: str = "mixed",
) -> Graph:
    """A Llama-like graph. `window` > 0 gives every second layer a sliding window."""
    mix = MIXES[quant]
    weights = {
        "embed": Weight((vocab, width), mix["embed"]),
        "norm": Weight((width,)),
        "inv_freq": Weight((head_dim // 2,)),
    }
    nodes = [Node("embed", ("tokens",), "x0", {"weight": "embed"})]
    states = {}
    for i in range(layers):
        own = window if i % 2 else 0
        states[f"kv{i}"] = KVState(kv_heads, head_dim, own)
        attrs = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim, "window": own}
        weights |= {
            f"l{i}.norm1": Weight((width,)),
            f"l{i}.qkv": Weight(((heads + 2 * kv_heads) * head_dim, width), mix["qkv"]),
            f"l{i}.o": Weight((width, heads * head_dim), mix["o"]),
            f"l{i}.norm2": Weight((width,)),
            f"l{i}.gate_up": Weight((2 * ff, width), mix["gate_up"]),
            f"l{i}.down": Weight((width, ff), mix["down"]),
        }
        nodes += _layer(i, attrs | {"scale": head_dim**-0.5})
    head = "embed" if tied else "head"
    if not tied:
        weights["head"] = Weight((vocab, width), mix["embed"])
    nodes += [
        Node("select", (f"x{layers}", "rows"), "picked"),
        Node("rms_norm", ("picked",), "normed", {"weight": "norm"}, {"eps": 1e-5}),
        Node("linear", ("normed",), "logits", {"weight": head}),
    ]
    return Graph(
        "model",
        (Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32")),
        (Value("logits", ("R", vocab)),),
        tuple(nodes),
        weights,
        states,
        context,
    )


def _layer(i: int, attrs: dict[str, Any]) -> list[Node]:
    eps = {"eps": 1e-5}
    return [
        Node("rms_norm", (f"x{i}",), f"l{i}.n1", {"weight": f"l{i}.norm1"}, eps),
        Node("linear", (f"l{i}.n1",), f"l{i}.rows", {"weight": f"l{i}.qkv"}),
        Node("attention", (f"l{i}.rows",), f"l{i}.a", {"inv_freq": "inv_freq"}, attrs, f"kv{i}"),
        Node("linear", (f"l{i}.a",), f"l{i}.ao", {"weight": f"l{i}.o"}),
        Node("add", (f"x{i}", f"l{i}.ao"), f"l{i}.mid"),
        Node("rms_norm", (f"l{i}.mid",), f"l{i}.n2", {"weight": f"l{i}.norm2"}, eps),
        Node("linear", (f"l{i}.n2",), f"l{i}.gu", {"weight": f"l{i}.gate_up"}),
        Node("glu", (f"l{i}.gu",), f"l{i}.g", {}, {"act": "silu"}),
        Node("linear", (f"l{i}.g",), f"l{i}.d", {"weight": f"l{i}.down"}),
        Node("add", (f"l{i}.mid", f"l{i}.d"), f"x{i + 1}"),
    ]


def tiny_weights(graph: Graph, seed: int = 0) -> dict[str, Matrix]:
    """Random weights of a graph, stored as it declares: graph name -> ndarray or Quantized."""
    rng = np.random.default_rng(seed)
    out: dict[str, Matrix] = {}
    for name, weight in graph.weights.items():
        if name.startswith("inv_freq"):
            half = weight.shape[0]
            out[name] = (10000.0 ** (-np.arange(half) / half)).astype(np.float32)
        elif len(weight.shape) == 1:
            out[name] = (1 + 0.1 * rng.standard_normal(weight.shape)).astype(np.float32)
        else:
            dense = rng.standard_normal(weight.shape) / np.sqrt(weight.shape[1])
            out[name] = encodings.quantize(dense.astype(np.float32), weight.encoding)
    return out


def tensors(weights: Mapping[str, Matrix]) -> dict[str, np.ndarray]:
    """Weights as the tensors of a weights file, by tensor name."""
    out: dict[str, np.ndarray] = {}
    for name, weight in weights.items():
        parts = encodings.tensors_of(weight)
        out |= {f"{name}{t.suffix}": parts[t.key] for t in encodings.encoding_of(weight).tensors}
    return out


def write_weights(path: Path, graph: Graph, weights: Mapping[str, Matrix]) -> None:
    """weights.safetensors of a graph."""
    specs: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, weight in graph.weights.items():
        specs |= tensors_of(name, weight)
    with TensorWriter(path, aligned_order(specs)) as writer:
        for name, array in tensors(weights).items():
            writer.write(name, array)


@functools.cache
def tiny_tokenizer() -> str:
    """tokenizer.json: 4 special tokens, then one token a byte; no merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate([*SPECIAL, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    return tokenizer.to_str()


def tiny_manifest(graph: Graph, *, template: str | None = TEMPLATE, **changes: Any) -> Manifest:
    """The manifest of a tiny bundle, without its files."""
    text = TextSpec(
        eos_token_ids=(EOS,),
        vocab_size=vocab_size(graph),
        bos_token_id=BOS,
        chat_template="chat_template.jinja" if template is not None else None,
        special={"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS]},
    )
    manifest = Manifest(
        format=FORMAT,
        kind="text",
        name="tiny",
        parts={"model": Part("model.graph.json", "weights.safetensors")},
        text=text,
        provenance=Provenance("tests/tiny.py", {"edgert": "0"}, {}, "2026-01-01"),
    )
    return manifest.replace(**changes)


def tiny_bundle(
    path: Path,
    *,
    seed: int = 0,
    template: str | None = TEMPLATE,
    golden: tuple[Golden, ...] = (),
    weights: Mapping[str, Matrix] | None = None,
    graph: Graph | None = None,
    **sizes: Any,
) -> Path:
    """Write a bundle; `sizes` go to `tiny_graph`. Returns `path`."""
    graph = graph or tiny_graph(**sizes)
    with BundleWriter(path) as writer:
        writer.file("model.graph.json").write_bytes(graph.to_json())
        write_weights(
            writer.file("weights.safetensors"), graph, weights or tiny_weights(graph, seed)
        )
        writer.file("tokenizer.json").write_text(tiny_tokenizer(), encoding="utf-8")
        if template is not None:
            writer.file("chat_template.jinja").write_text(template, encoding="utf-8")
        return writer.finish(tiny_manifest(graph, template=template, golden=golden))


def reseal(path: Path, **changes: Any) -> None:
    """After a file of a bundle was changed by hand: put true sizes and hashes in its manifest.

    changes: manifest fields to replace (as JSON values). What an attacker would do.
    """
    import hashlib

    manifest = json.loads((path / "manifest.json").read_bytes()) | changes
    for name, entry in manifest["files"].items():
        data = (path / name).read_bytes()
        entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
