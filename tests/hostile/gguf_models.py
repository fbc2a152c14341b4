"""A small good GGUF model in bytes, with any key or tensor exchanged."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.converters.gguf_files import letters
from tests.gguf_bytes import ARRAY, I32, Made, Tensor, Typed

WIDTH, FF, VOCAB = 32, 64, 260
KEYS: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.context_length": 64,
    "llama.embedding_length": WIDTH,
    "llama.block_count": 1,
    "llama.feed_forward_length": FF,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": 16,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "</s>", *letters(), "no", "ab"],
    "tokenizer.ggml.token_type": Typed(ARRAY, (I32, [3, 3] + [1] * (VOCAB - 2))),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (VOCAB, WIDTH), "output_norm.weight": (WIDTH,),
    "blk.0.attn_norm.weight": (WIDTH,), "blk.0.ffn_norm.weight": (WIDTH,),
    "blk.0.attn_q.weight": (32, WIDTH), "blk.0.attn_k.weight": (16, WIDTH),
    "blk.0.attn_v.weight": (16, WIDTH), "blk.0.attn_output.weight": (WIDTH, 32),
    "blk.0.ffn_gate.weight": (FF, WIDTH), "blk.0.ffn_up.weight": (FF, WIDTH),
    "blk.0.ffn_down.weight": (WIDTH, FF),
}  # fmt: skip


def q8_0(shape: tuple[int, ...], scale: float = 0.01) -> bytes:
    blocks = shape[0] * shape[1] // 32
    codes = np.random.default_rng(blocks).integers(0, 256, (blocks, 32)).astype(np.uint8)
    head = np.full((blocks, 1), scale, "<f2").view(np.uint8)
    return np.concatenate([head, codes], axis=1).tobytes()


def tensors(shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> dict[str, Tensor]:
    """Vectors of ones, matrices in Q8_0."""
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            found[name] = Tensor(name, shape, 0, struct.pack(f"<{shape[0]}f", *[1.0] * shape[0]))
        else:
            found[name] = Tensor(name, tuple(reversed(shape)), 8, q8_0(shape))
    return found


def model(keys: Mapping[str, Any] = {}, **changed: Tensor | None) -> Made:
    """A good model but for changes: keys, and tensors by name with "_" for "."; None leaves out."""
    found = tensors()
    for name, tensor in changed.items():
        old = next(key for key in found if key.replace(".", "_") == name)
        if tensor is None:
            del found[old]
        else:
            found[old] = tensor
    whole = {k: v for k, v in {**KEYS, **keys}.items() if v is not None}
    return Made(whole, list(found.values()))
