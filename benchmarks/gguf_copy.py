"""Writes a bundle's very weights as a GGUF file, so that llama.cpp can be timed on the same bits.

int4-g32 becomes Q4_0 and int8-g32 becomes Q8_0, both without loss (same block, same scale, same
codes); f32 and f16 stay. Only plain Llama graphs (no q/k norm, no soft caps, no windows): rows of
fused matrices are split, and query and key rows are permuted from the half-split rotary order to
the interleaved one that the "llama" architecture of GGUF uses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from edgert.kernels.encodings import dequantize, rows_of
from edgert.kernels.quant import Quantized
from gguf import GGMLQuantizationType, GGUFWriter

from edgert.graph import Graph
from edgert.roles import vocab_size


def blocks(w: Any) -> tuple[np.ndarray, GGMLQuantizationType]:
    """A stored matrix as GGUF bytes [N, row bytes] (or float array) and its type."""
    if not isinstance(w, Quantized):
        kind = GGMLQuantizationType.F16 if w.dtype == np.float16 else GGMLQuantizationType.F32
        return np.ascontiguousarray(w), kind
    n, count = w.scales.shape
    if w.shape[1] % 32:
        return dequantize(w), GGMLQuantizationType.F32
    scales = np.ascontiguousarray(w.scales).view(np.uint8).reshape(n, count, 2)
    if w.encoding == "int8-g32":
        codes = (w.q ^ 0x80).astype(np.uint8)
        kind = GGMLQuantizationType.Q8_0
    elif w.encoding == "int4-g32":
        values = np.empty((n, count, 32), np.uint8)
        values[..., 0::2], values[..., 1::2] = w.q & 15, w.q >> 4
        codes = values[..., :16] | (values[..., 16:] << 4)
        kind = GGMLQuantizationType.Q4_0
    else:
        raise SystemExit(f"{w.encoding} has no lossless form in GGUF")
    return np.concatenate([scales, codes], axis=-1).reshape(n, -1), kind


def interleaved(heads: int, size: int) -> np.ndarray:
    """Row order that turns half-split rotary pairs into neighbouring ones."""
    half = size // 2
    one = np.stack([np.arange(half), np.arange(half) + half], axis=1).reshape(-1)
    return (np.arange(heads)[:, None] * size + one[None, :]).reshape(-1)


def write_gguf(graph: Graph, weights: dict[str, Any], path: Path) -> None:
    """A Llama-layout graph and its stored weights as one GGUF file without a vocabulary."""
    nodes = list(graph.nodes)
    attention = [n for n in nodes if n.op == "attention"]
    attrs = attention[0].attrs
    heads, groups, size = (int(attrs[k]) for k in ("heads", "kv_heads", "head_dim"))
    if any(
        "q_norm" in n.weights or n.attrs.get("softcap") or n.attrs.get("window") for n in attention
    ):
        raise SystemExit("only plain Llama graphs can be copied to GGUF")
    norms = [n for n in nodes if n.op == "rms_norm"]
    inv_freq = weights[attention[0].weights["inv_freq"]]
    base = float(inv_freq[1] / inv_freq[0]) ** (-len(inv_freq))
    embed = next(n for n in nodes if n.op == "embed").weights["weight"]
    linears = [n for n in nodes if n.op == "linear"]
    head = linears[-1].weights["weight"]
    ff = graph.weights[linears[2].weights["weight"]].shape[0] // 2
    writer = GGUFWriter(str(path), "llama")
    writer.add_context_length(graph.context)
    writer.add_embedding_length(graph.weights[embed].shape[1])
    writer.add_block_count(len(attention))
    writer.add_feed_forward_length(ff)
    writer.add_head_count(heads)
    writer.add_head_count_kv(groups)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(2 * len(inv_freq))
    writer.add_rope_freq_base(base)
    writer.add_layer_norm_rms_eps(float(norms[0].attrs["eps"]))
    writer.add_vocab_size(vocab_size(graph))
    writer.add_tokenizer_model("no_vocab")

    def add(name: str, w: Any) -> None:
        data, kind = blocks(w)
        writer.add_tensor(name, data, raw_dtype=kind)

    add("token_embd.weight", weights[embed])
    if head != embed:
        add("output.weight", weights[head])
    add("output_norm.weight", weights[norms[-1].weights["weight"]])
    for i in range(len(attention)):
        qkv, o, gate_up, down = (weights[n.weights["weight"]] for n in linears[4 * i : 4 * i + 4])
        q, k = heads * size, groups * size
        bias = linears[4 * i].weights.get("bias")
        parts = {
            "attn_q": interleaved(heads, size),
            "attn_k": q + interleaved(groups, size),
            "attn_v": slice(q + k, q + 2 * k),
        }
        for name, index in parts.items():
            add(f"blk.{i}.{name}.weight", rows_of(qkv, index))
            if bias:
                add(f"blk.{i}.{name}.bias", weights[bias][index])
        add(f"blk.{i}.attn_output.weight", o)
        add(f"blk.{i}.ffn_gate.weight", rows_of(gate_up, slice(0, ff)))
        add(f"blk.{i}.ffn_up.weight", rows_of(gate_up, slice(ff, 2 * ff)))
        add(f"blk.{i}.ffn_down.weight", down)
        add(f"blk.{i}.attn_norm.weight", weights[norms[2 * i].weights["weight"]])
        add(f"blk.{i}.ffn_norm.weight", weights[norms[2 * i + 1].weights["weight"]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
