"""The demo model as a checkpoint again: what `edgert demo` converts before your eyes.

Each stored value is a small integer times a float16 scale, and the largest of a group is a power of
two times it; so float16 holds every group well enough that a conversion with the same settings
finds the very same integers and scales again. The checkpoint is f16, in the Hugging Face layout.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle.reader import Bundle
from ..errors import BundleError
from ..graph import Graph
from ..kernels.encodings import dequantize
from ..storage.safetensors_writer import TensorWriter

F16 = NDArray[np.float16]
_NORMS = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm"}


def write_checkpoint(bundle: Bundle, folder: Path) -> Path:
    """Write the demo bundle's model into a new directory; returns it."""
    folder.mkdir()
    config = _config(bundle)
    tensors = dict(_tensors(bundle, config))
    specs = {name: ("F16", tensor.shape) for name, tensor in tensors.items()}
    with TensorWriter(folder / "model.safetensors", specs, metadata={"format": "pt"}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    text = bundle.manifest.text
    advice = dict(text.generation) if text is not None else {}
    generation = {"eos_token_id": config["eos_token_id"], "do_sample": True, **advice}
    special = dict(text.special) if text is not None else {}
    tokenizer = {**special, "add_bos_token": False}
    for name, value in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "chat_template.jinja"):
        (folder / name).write_bytes(bundle.read(name))
    return folder


def _config(bundle: Bundle) -> dict[str, Any]:
    """config.json of a LlamaForCausalLM, read off the graph."""
    graph, weights, text = bundle.graph(), bundle.weights(), bundle.manifest.text
    attention = next(node.attrs for node in graph.nodes if node.op == "attention")
    vocabulary, width = graph.weights["embed"].shape
    turns = np.asarray(weights["inv_freq"])
    if text is None:
        raise BundleError(
            f"{bundle.manifest.name} is a bundle without text, expected the chat model that came "
            "with edgert",
            code="demo",
            hint="install edgert again",
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": graph.weights["layers.0.down"].shape[1],
        "num_hidden_layers": _layers(graph),
        "num_attention_heads": attention["heads"],
        "num_key_value_heads": attention["kv_heads"],
        "head_dim": attention["head_dim"],
        "hidden_act": "silu",
        "max_position_embeddings": graph.context,
        "rms_norm_eps": next(node.attrs["eps"] for node in graph.nodes if node.op == "rms_norm"),
        "rope_theta": float(round(float(turns[-1]) ** (len(turns) / (1 - len(turns))))),
        "tie_word_embeddings": True,
        "bos_token_id": text.bos_token_id,
        "eos_token_id": list(text.eos_token_ids),
        "torch_dtype": "float16",
    }


def _layers(graph: Graph) -> int:
    return sum(node.op == "attention" for node in graph.nodes)


def _tensors(bundle: Bundle, config: dict[str, Any]) -> Iterator[tuple[str, F16]]:
    """Tensors under the names of transformers; fused matrices come apart."""
    stored = bundle.weights()
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    rows = np.cumsum([heads, groups]) * config["head_dim"]

    def half(name: str) -> F16:
        return dequantize(stored[name]).astype(np.float16)

    yield "model.embed_tokens.weight", half("embed")
    yield "model.norm.weight", half("norm")
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"layers.{layer}.", f"model.layers.{layer}."
        for short, long in _NORMS.items():
            yield f"{theirs}{long}.weight", half(ours + short)
        for part, matrix in zip("qkv", np.split(half(ours + "qkv"), rows), strict=True):
            yield f"{theirs}self_attn.{part}_proj.weight", matrix
        for part, matrix in zip(("gate", "up"), np.split(half(ours + "gate_up"), 2), strict=True):
            yield f"{theirs}mlp.{part}_proj.weight", matrix
        yield f"{theirs}self_attn.o_proj.weight", half(ours + "o")
        yield f"{theirs}mlp.down_proj.weight", half(ours + "down")
