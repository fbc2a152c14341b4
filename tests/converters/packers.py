"""Checkpoints packed by each method, written as the method's own program packs them, slowly and by
its formula, with the values that its own dequantization gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

F32 = NDArray[np.float32]
Made = tuple[dict[str, Any], F32]  # tensors by the end of their names, and the values


def codes_of(
    w: F32, bits: int, group: int, *, symmetric: bool
) -> tuple[NDArray[np.int64], F32, NDArray[np.int64]]:
    """Codes [N, K], float16 scales and zero codes [N, G] by groups, to nearest."""
    n, k = w.shape
    parts = w.reshape(n, -1, group)
    top = (1 << bits) - 1
    if symmetric:
        scale = np.abs(parts).max(-1) / ((1 << bits - 1) - 1)
        zero = np.full(scale.shape, 1 << bits - 1)
    else:
        low, high = np.minimum(parts.min(-1), 0), np.maximum(parts.max(-1), 0)
        scale = (high - low) / top
        zero = np.clip(np.rint(-low / scale), 1, top).astype(np.int64)
    scale = scale.astype(np.float16).astype(np.float32)
    codes = np.clip(np.rint(parts / scale[..., None]) + zero[..., None], 0, top)
    return codes.reshape(n, k).astype(np.int64), scale, zero


def values_of(codes: Any, scale: F32, zero: Any, group: int) -> F32:
    each = scale.repeat(group, 1)
    return ((codes - zero.repeat(group, 1)).astype(np.float32) * each).astype(np.float32)


def down(codes: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Codes [R, C] as words [R * bits / 32, C]: code r takes the bits from r * bits on."""
    rows, columns = codes.shape
    words = np.zeros((rows * bits // 32, columns), np.uint64)
    for r in range(rows):
        at, shift = divmod(r * bits, 32)
        wide = codes[r].astype(np.uint64) << np.uint64(shift)
        words[at] |= wide & np.uint64(0xFFFFFFFF)
        if shift + bits > 32:
            words[at + 1] |= wide >> np.uint64(32)
    return words.astype(np.uint32).view(np.int32)


def gptq(w: F32, bits: int = 4, group: int = 64, *, symmetric: bool = True, less: int = 1) -> Made:
    """less: what version 1 takes off its zero codes."""
    codes, scale, zero = codes_of(w, bits, group, symmetric=symmetric)
    k = w.shape[1]
    return {
        "qweight": down(codes.T, bits),
        "qzeros": np.ascontiguousarray(down(zero - less, bits).T),
        "scales": np.ascontiguousarray(scale.T).astype(np.float16),
        "g_idx": (np.arange(k) // group).astype(np.int32),
    }, values_of(codes, scale, zero, group)


def gptq_ordered(w: F32) -> Made:
    """With desc_act: inputs are in groups by another order."""
    order = np.random.default_rng(0).permutation(w.shape[1])
    tensors, values = gptq(np.ascontiguousarray(w[:, order]))
    back = np.argsort(order)
    codes, _, _ = codes_of(np.ascontiguousarray(w[:, order]), 4, 64, symmetric=True)
    tensors["qweight"] = down(codes[:, back].T, 4)
    tensors["g_idx"] = tensors["g_idx"][back]
    return tensors, np.ascontiguousarray(values[:, back])


def awq(w: F32, group: int = 32) -> Made:
    codes, scale, zero = codes_of(w, 4, group, symmetric=False)

    def eights(values: NDArray[np.int64]) -> NDArray[np.int32]:
        words = np.zeros((values.shape[0], values.shape[1] // 8), np.uint32)
        for column in range(words.shape[1]):
            for place, other in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                words[:, column] |= values[:, column * 8 + other].astype(np.uint32) << (4 * place)
        return words.view(np.int32)

    return {
        "qweight": eights(codes.T), "qzeros": eights(zero.T),
        "scales": np.ascontiguousarray(scale.T).astype(np.float16),
    }, values_of(codes, scale, zero, group)  # fmt: skip


def compressed(w: F32, bits: int = 4, group: int = 32, *, symmetric: bool = True) -> Made:
    codes, scale, zero = codes_of(w, bits, group, symmetric=symmetric)
    tensors: dict[str, Any] = {
        "weight_packed": np.ascontiguousarray(down(codes.T, bits).T),
        "weight_scale": scale.astype(np.float16),
        "weight_shape": np.array(w.shape, np.int64),
    }
    if not symmetric:
        tensors["weight_zero_point"] = down(zero, bits)
    return tensors, values_of(codes, scale, zero, group)


def compressed_int8(w: F32) -> Made:
    """By row."""
    codes, scale, zero = codes_of(w, 8, w.shape[1], symmetric=True)
    values = values_of(codes, scale, zero, w.shape[1])
    return {
        "weight": (codes - 128).astype(np.int8), "weight_scale": scale.astype(np.float16)
    }, values  # fmt: skip


def nf4(w: F32, *, nested: bool = True) -> Made:
    """bitsandbytes, absmax of 64 values, in codes of their own where nested."""
    table = np.array(
        [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0,
         0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0],
        np.float32,
    )  # fmt: skip
    flat = w.reshape(-1, 64)
    peaks = np.abs(flat).max(-1).astype(np.float32)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": list(w.shape)}
    tensors: dict[str, Any] = {"weight.absmax": peaks}
    if nested:
        inner = np.linspace(-1, 1, 256).astype(np.float32)
        offset = float(peaks.mean())
        outer = np.array(
            [np.abs(p - offset).max() for p in np.split(peaks, range(256, len(peaks), 256))],
            np.float32,
        )
        each = outer.repeat(256)[: len(peaks)]
        chosen = np.abs(inner[None] - ((peaks - offset) / each)[:, None]).argmin(-1)
        peaks = (inner[chosen] * each + np.float32(offset)).astype(np.float32)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        tensors = {
            "weight.absmax": chosen.astype(np.uint8), "weight.nested_absmax": outer,
            "weight.nested_quant_map": inner,
        }  # fmt: skip
    codes = np.abs(table - (flat / peaks[:, None])[..., None]).argmin(-1).reshape(-1, 2)
    tensors["weight"] = (codes[:, :1] << 4 | codes[:, 1:]).astype(np.uint8)
    tensors["weight.quant_map"] = table
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    tensors["weight.quant_state.bitsandbytes__nf4"] = raw
    return tensors, (table[codes.reshape(-1, 64)] * peaks[:, None]).reshape(w.shape)


def fp8(w: F32, tile: int = 32) -> Made:
    """As torch rounds, in tiles."""
    import torch

    n, k = w.shape
    scale = np.zeros((-(-n // tile), -(-k // tile)), np.float32)
    for i, j in np.ndindex(*scale.shape):
        scale[i, j] = np.abs(w[i * tile : (i + 1) * tile, j * tile : (j + 1) * tile]).max() / 448
    each = scale.repeat(tile, 0)[:n].repeat(tile, 1)[:, :k]
    codes = torch.from_numpy(w / each).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scale}, codes.float().numpy() * each


SCHEME = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


BY_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def scheme(inputs: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": {**SCHEME, **changes}, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors", "format": "pack-quantized",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"],
    }  # fmt: skip


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
# name -> quantization_config, how a matrix is packed, the encoding that its codes are taken over in
METHODS: dict[str, tuple[dict[str, Any], Callable[[F32], Made], str]] = {
    "gptq": (GPTQ, gptq, "int4-g64"),
    "gptq-zeros": (
        {**GPTQ, "sym": False}, lambda w: gptq(w, symmetric=False), "uint4-g64",
    ),
    "gptq-v2": (
        {**GPTQ, "checkpoint_format": "gptq_v2"}, lambda w: gptq(w, less=0), "int4-g64",
    ),
    "gptq-3": ({**GPTQ, "bits": 3, "group_size": 32}, lambda w: gptq(w, 3, 32), "int3-g32"),
    "gptq-8": ({**GPTQ, "bits": 8, "group_size": 32}, lambda w: gptq(w, 8, 32), "int8-g32"),
    "gptq-whole": (
        {**GPTQ, "group_size": -1}, lambda w: gptq(w, group=w.shape[1]), "int4-g",
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        awq, "uint4-g32",
    ),
    "compressed": (scheme(), compressed, "int4-g32"),
    "compressed-zeros": (
        scheme(symmetric=False), lambda w: compressed(w, symmetric=False), "uint4-g32",
    ),
    "compressed-int8": (
        scheme(num_bits=8, strategy="channel", group_size=None), compressed_int8, "int8-g",
    ),
    "compressed-w8a8": (
        scheme(BY_TOKEN, num_bits=8, strategy="channel", group_size=None), compressed_int8,
        "int8-channel",
    ),
    "nf4": (BNB, nf4, ""),
    "nf4-plain": (BNB, lambda w: nf4(w, nested=False), ""),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [32, 32]}, fp8, ""),
}  # fmt: skip


def repack(folder: Path, name: str, pack: Callable[[F32], Made] | None = None) -> dict[str, F32]:
    """The checkpoint's projections packed in place; all its values by name, as the method has
    them."""
    import torch
    from safetensors.torch import save_file

    settings, own, _ = METHODS[name]
    tensors: dict[str, Any] = {}
    values: dict[str, F32] = {}
    for key, array in load_file(folder / "model.safetensors").items():
        if "_proj.weight" not in key:
            tensors[key] = torch.from_numpy(array)
            values[key] = array
            continue
        stem = key.removesuffix("weight")
        made, values[key] = (pack or own)(array)
        for end, part in made.items():
            given = part if isinstance(part, torch.Tensor) else torch.from_numpy(part.copy())
            tensors[f"{stem}{end}"] = given
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**config, "quantization_config": settings}), "utf-8")
    return values
