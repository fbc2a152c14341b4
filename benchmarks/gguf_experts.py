"""Writes a bundle of the family qwen3_moe as a GGUF file, with its very weights, for llama.cpp.

As `gguf_copy.py`: int4-g32 becomes Q4_0 and int8-g32 Q8_0 without loss. Experts are stacked as
llama.cpp has them, [E, F, C] for gates and ups and [E, C, F]; routers become F32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from edgert.kernels.encodings import dequantize, rows_of
from gguf import GGUFWriter

from benchmarks.gguf_copy import blocks
from edgert.graph import Graph, Node
from edgert.roles import vocab_size


def has_experts(graph: Graph) -> bool:
    """Whether this module writes a graph, and not `gguf_copy.py`."""
    return any(node.op == "experts" for node in graph.nodes)


def stacks(node: Node, weights: dict[str, Any]) -> dict[str, Any]:
    """GGUF's name of each stack of an `experts` node -> its rows, experts in turn, [E * N, K]."""
    both, down = (weights[node.weights[slot]] for slot in ("gate_up", "down"))
    half = both.shape[0] // 2
    return {
        "ffn_gate_exps": rows_of(both, slice(0, half)),
        "ffn_up_exps": rows_of(both, slice(half, 2 * half)),
        "ffn_down_exps": down,
    }


def write_experts(graph: Graph, weights: dict[str, Any], path: Path) -> None:
    """A graph whose layers all have experts, as a GGUF file without a vocabulary."""
    attention, experts, norms, linears = (
        [node for node in graph.nodes if node.op == op]
        for op in ("attention", "experts", "rms_norm", "linear")
    )
    embed = next(n for n in graph.nodes if n.op == "embed").weights["weight"]
    head = linears[-1].weights["weight"]
    if len(experts) != len(attention) or len(linears) != 3 * len(attention) + 1:
        raise SystemExit("only models whose layers all have experts can be copied to GGUF")
    writer = GGUFWriter(str(path), "qwen3moe")
    _write_keys(writer, graph, weights)

    def add(name: str, w: Any, count: int = 0) -> None:
        data, kind = blocks(w)
        data = data.reshape(count, -1, data.shape[-1]) if count else data
        writer.add_tensor(name, data, raw_dtype=kind)

    add("token_embd.weight", weights[embed])
    if head != embed:
        add("output.weight", weights[head])
    add("output_norm.weight", weights[norms[-1].weights["weight"]])
    for i, node in enumerate(attention):
        heads, groups, size = (int(node.attrs[k]) for k in ("heads", "kv_heads", "head_dim"))
        qkv, o, router = (weights[n.weights["weight"]] for n in linears[3 * i : 3 * i + 3])
        q, k = heads * size, groups * size
        spans = {"attn_q": (0, q), "attn_k": (q, q + k), "attn_v": (q + k, q + 2 * k)}
        for name, span in spans.items():
            add(f"blk.{i}.{name}.weight", rows_of(qkv, slice(*span)))
        add(f"blk.{i}.attn_output.weight", o)
        add(f"blk.{i}.ffn_gate_inp.weight", dequantize(router))
        for name, rows in stacks(experts[i], weights).items():
            add(f"blk.{i}.{name}.weight", rows, int(experts[i].attrs["experts"]))
        for key, name in (("q_norm", "attn_q_norm"), ("k_norm", "attn_k_norm")):
            add(f"blk.{i}.{name}.weight", weights[node.weights[key]])
        for at, name in enumerate(("attn_norm", "ffn_norm")):
            add(f"blk.{i}.{name}.weight", weights[norms[2 * i + at].weights["weight"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_keys(writer: GGUFWriter, graph: Graph, weights: dict[str, Any]) -> None:
    node = next(n for n in graph.nodes if n.op == "attention")
    experts = next(n for n in graph.nodes if n.op == "experts")
    norm = next(n for n in graph.nodes if n.op == "rms_norm")
    width = graph.weights[experts.weights["down"]].shape[1]
    inv_freq = weights[node.weights["inv_freq"]]
    size = int(node.attrs["head_dim"])
    if not experts.attrs.get("normalised", True):
        raise SystemExit("llama.cpp has no qwen3moe whose picked weights do not sum to 1")
    writer.add_context_length(graph.context)
    writer.add_embedding_length(graph.weights[norm.weights["weight"]].shape[0])
    writer.add_block_count(sum(n.op == "attention" for n in graph.nodes))
    writer.add_feed_forward_length(width)
    writer.add_expert_feed_forward_length(width)
    writer.add_expert_count(int(experts.attrs["experts"]))
    writer.add_expert_used_count(int(experts.attrs["active"]))
    writer.add_head_count(int(node.attrs["heads"]))
    writer.add_head_count_kv(int(node.attrs["kv_heads"]))
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(2 * len(inv_freq))
    writer.add_rope_freq_base(float(np.float64(inv_freq[1] / inv_freq[0]) ** -len(inv_freq)))
    writer.add_layer_norm_rms_eps(float(norm.attrs["eps"]))
    writer.add_vocab_size(vocab_size(graph))
    writer.add_tokenizer_model("no_vocab")
