"""How the methods lay packed matrices out: one reader each, by `quant_method` of the config.

    gptq                qweight int32 [K b / 32, N], codes along K; qzeros int32 [G, N b / 32], in
                        version 1 less 1; scales [G, N]; g_idx int32 [K], the group of each input
    awq                 qweight int32 [K, N / 8] and qzeros [G, N / 8], columns in the order
                        0 2 4 6 1 3 5 7 of each eight; scales [G, N]
    compressed-tensors  weight_packed int32 [N, K b / 32], 2^(b - 1) added; weight_scale [N, G];
                        weight_zero_point int32 [N b / 32, G]; or weight int8 or F8 [N, K]

and those of `packed_floats.py`, whose values no encoding has, and `packed_mx.py`. Formulas:
AutoGPTQ and GPTQModel (`pack`), AutoAWQ (`pack_intweight`), compressed-tensors (`pack_to_int32`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError
from ...kernels.grid import unpack_codes
from ...kernels.quant import channel_fault
from ...notices import notice
from ..families.recipe import F32
from .base import SourceTensor
from .checkpoint import Tensor
from .packed import Channels, Codes, Entries, Float, Packed, whole
from .packed_floats import bitsandbytes, e4m3, floats, fp8
from .packed_mx import mxfp4

BY_CHANNEL = {"num_bits": 8, "type": "int", "strategy": "channel"}  # weights
BY_TOKEN = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}  # activations
FLOATS = ("F16", "BF16", "F32")
AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where column i of eight stands
I16 = NDArray[np.int16]
Settings = Mapping[str, Any]


class _Held:
    """The last few tensors that were read whole: rows of codes that lie along K are columns."""

    def __init__(self, count: int = 4) -> None:
        self._count, self._lock = count, threading.Lock()
        self._found: dict[int, NDArray[Any]] = {}

    def get(self, tensor: Tensor, made: Callable[[Tensor], NDArray[Any]]) -> NDArray[Any]:
        """made(tensor), remembered."""
        key = id(tensor)
        with self._lock:
            if key not in self._found:
                while len(self._found) >= self._count:
                    del self._found[next(iter(self._found))]
                self._found[key] = made(tensor)
            return self._found[key]


def _whole_number(
    settings: Settings, key: str, entries: Entries, default: int | None = None
) -> int:
    found = settings.get(key, default)
    if type(found) is not int or not -1 <= found < 1 << 31:
        raise entries.fault(f"quantization_config {key!r} is {str(found)[:40]}, expected a number")
    return found


def gptq(settings: Settings, entries: Entries) -> None:
    """GPTQ, version 1 and 2 (checkpoint_format gptq_v2)."""
    bits = _whole_number(settings, "bits", entries)
    group = _whole_number(settings, "group_size", entries)
    kind = settings.get("checkpoint_format", settings.get("format", "gptq"))
    if bits not in (2, 3, 4, 8) or kind not in ("gptq", "gptq_v2"):
        raise entries.fault(f"{bits} bits in the format {str(kind)[:40]!r}, expected gptq's 2 to 8")
    add, held = int(kind == "gptq"), _Held()
    for stem in entries.stems(".qweight"):
        q = entries.take(f"{stem}.qweight", "I32", rank=2)
        k, n = q.shape[0] * 32 // bits, q.shape[1]
        size = k if group == -1 else group
        groups = -(-k // max(size, 1)) if size > 0 else 0
        if not groups or n * bits % 32:
            raise entries.fault(f"tensor {stem!r} [{n}, {k}] in groups of {group}")
        scales = entries.shaped(f"{stem}.scales", (groups, n), *FLOATS)
        zeros = entries.shaped(f"{stem}.qzeros", (groups, n * bits // 32), "I32")
        order = None
        if f"{stem}.g_idx" in entries.tensors:
            order = whole(entries.shaped(f"{stem}.g_idx", (k,), "I32"))
            order = None if np.array_equal(order, np.arange(k) // size) else order
        if order is not None and not (0 <= order.min() and order.max() < groups):
            raise entries.fault(f"tensor {stem + '.g_idx'!r} names groups beyond {groups - 1}")
        _drop_zero_bias(stem, entries)
        name = f"{stem}.weight"
        made = _columns(name, (n, k), bits, size, q, scales, zeros, add, held)
        entries.made[name] = made if order is None else _Ordered(made, order)


def _drop_zero_bias(stem: str, entries: Entries) -> None:
    """Old programs stored biases of zeros for models that have none."""
    bias = entries.tensors.get(f"{stem}.bias")
    known = stem.rpartition(".")[2] in ("q_proj", "k_proj", "v_proj") and entries.biased
    if isinstance(bias, Tensor) and not known and not floats(bias).any():
        del entries.tensors[f"{stem}.bias"]


def _columns(
    name: str, shape: tuple[int, int], bits: int, group: int, q: Tensor, scales: Tensor,
    zeros: Tensor, add: int, held: _Held,
) -> Packed:  # fmt: skip
    """GPTQ's matrix: codes of a column as a stream of bits down its words."""
    n, k = shape

    def steps() -> tuple[F32, I16]:
        packed = np.ascontiguousarray(whole(zeros)).view(np.uint8)
        found = unpack_codes(packed.reshape(len(packed), -1), bits, n).astype(np.int16) + add
        return np.ascontiguousarray(floats(scales).T), np.ascontiguousarray(found.T)

    known: list[tuple[F32, I16]] = []

    def read(start: int, stop: int) -> Codes:
        if not known:
            known.append(steps())
        words = held.get(q, lambda t: np.ascontiguousarray(whole(t).T))  # [N, words]
        stream = np.ascontiguousarray(words[start:stop]).view(np.uint8)
        codes = unpack_codes(stream.reshape(stop - start, -1), bits, k)
        return Codes(codes, known[0][0][start:stop], known[0][1][start:stop])

    return Packed(name, (n, k), bits, group, read, steps)


class _Ordered:
    """GPTQ's matrix whose inputs are in groups of their own choice ("act order"): exact as floats;
    no encoding has such groups, so its codes can only be chosen anew."""

    dtype, kept, instead = "F32", "", ""
    refusal = (
        "has its inputs in groups by their order of importance (desc_act), which no encoding has"
    )

    def __init__(self, matrix: Packed, order: NDArray[np.int32]) -> None:
        self._matrix, self._order, self.shape = matrix, order, matrix.shape

    def rows(self, start: int, stop: int) -> F32:
        """Rows [start, stop) as float32."""
        found = self._matrix._read(start, stop)
        zeros, scales = found.zeros[:, self._order], found.scales[:, self._order]
        values: F32 = (found.codes.astype(np.float32) - zeros) * scales
        return values


def awq(settings: Settings, entries: Entries) -> None:
    """AWQ in its gemm packing."""
    bits = _whole_number(settings, "bits", entries, 4)
    group = _whole_number(settings, "group_size", entries, 128)
    version = str(settings.get("version", "gemm")).lower()
    if bits != 4 or version != "gemm" or settings.get("zero_point") is False:
        raise entries.fault(f"AWQ of {bits} bits, version {version[:40]!r}, expected 4 and 'gemm'")
    held = _Held()
    for stem in entries.stems(".qweight"):
        q = entries.take(f"{stem}.qweight", "I32", rank=2)
        k, n = q.shape[0], q.shape[1] * 8
        size = k if group == -1 else group
        if size < 1 or k % size:
            raise entries.fault(f"tensor {stem!r} [{n}, {k}] in groups of {group}")
        scales = entries.shaped(f"{stem}.scales", (k // size, n), *FLOATS)
        zeros = entries.shaped(f"{stem}.qzeros", (k // size, n // 8), "I32")
        name = f"{stem}.weight"
        entries.made[name] = _awq(name, (n, k), size, q, scales, zeros, held)


def _eights(words: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Words [r, n / 8] as codes [r, n], each eight in its columns' order."""
    codes = unpack_codes(np.ascontiguousarray(words).view(np.uint8), 4, words.shape[1] * 8)
    return codes.reshape(len(words), -1, 8)[:, :, AWQ_ORDER].reshape(len(words), -1)


def _awq(
    name: str, shape: tuple[int, int], group: int, q: Tensor, scales: Tensor, zeros: Tensor,
    held: _Held,
) -> Packed:  # fmt: skip
    def steps() -> tuple[F32, I16]:
        found = _eights(whole(zeros)).astype(np.int16)
        return np.ascontiguousarray(floats(scales).T), np.ascontiguousarray(found.T)

    known: list[tuple[F32, I16]] = []

    def read(start: int, stop: int) -> Codes:
        if not known:
            known.append(steps())
        codes = held.get(q, lambda t: np.ascontiguousarray(_eights(whole(t)).T))  # [N, K]
        return Codes(codes[start:stop], known[0][0][start:stop], known[0][1][start:stop])

    return Packed(name, shape, 4, group, read, steps)


def compressed_tensors(settings: Settings, entries: Entries) -> None:
    """compressed-tensors: pack-quantized and int-quantized, by group or by row; F8 by row."""
    groups = settings.get("config_groups")
    schemes = [g.get("weights") for g in groups.values()] if isinstance(groups, dict) else []
    if len(schemes) != 1 or not isinstance(schemes[0], dict):
        raise entries.fault(f"{len(schemes)} groups of schemes, expected one")
    inputs = next(iter(groups.values())).get("input_activations") if groups else None
    by_channel = (
        isinstance(inputs, dict)
        and inputs.items() >= BY_TOKEN.items()
        and inputs.get("symmetric") is not False
        and schemes[0].items() >= BY_CHANNEL.items()
        and not entries.stems(".weight_packed")
    )
    if inputs and not by_channel:
        notice(f"{entries.where}: activations are not quantized as its scheme asks, only weights")
    scheme = schemes[0]
    bits, kind = _whole_number(scheme, "num_bits", entries), scheme.get("type")
    strategy, ordered = scheme.get("strategy"), scheme.get("actorder")
    if strategy not in ("group", "channel", "tensor") or kind not in ("int", "float"):
        raise entries.fault(
            f"a scheme of type {str(kind)[:20]!r}, strategy {str(strategy)[:20]!r}, expected int "
            "or float by group, channel or tensor"
        )
    if ordered not in (None, False, "static", "weight"):
        raise entries.fault(f"actorder {str(ordered)[:20]!r}, expected none or 'weight'")
    group = _whole_number(scheme, "group_size", entries) if strategy == "group" else -1
    for stem in entries.stems(".weight_packed"):
        _pack_quantized(stem, bits, group, scheme.get("symmetric") is not False, entries)
    for stem in entries.stems(".weight_scale"):
        _int_or_float(stem, group, kind == "int" and bits == 8, entries, by_channel=by_channel)


def _pack_quantized(stem: str, bits: int, group: int, symmetric: bool, entries: Entries) -> None:
    """Codes along K in words, with 2^(b - 1) added."""
    name = f"{stem}.weight"
    q = entries.take(f"{name}_packed", "I32", rank=2)
    told = whole(entries.shaped(f"{name}_shape", (2,), "I64", "I32")).tolist()
    n, k, each = q.shape[0], int(told[1]), 32 // bits if bits in (2, 4, 8) else 0
    size = k if group == -1 else group
    if not each or told[0] != n or k < 1 or -(-k // each) != q.shape[1] or size < 1 or k % size:
        raise entries.fault(f"tensor {name!r} {told} of {bits} bits in groups of {group}")
    scales = entries.shaped(f"{name}_scale", (n, k // size), *FLOATS)
    zeros = None
    if not symmetric:
        words = -(-n // each)
        zeros = entries.shaped(f"{name}_zero_point", (words, k // size), "I32")
    if f"{name}_g_idx" in entries.tensors:
        raise entries.fault(f"tensor {name!r} has groups of its own order (weight_g_idx)")

    def steps() -> tuple[F32, I16]:
        found = np.full((n, k // size), 1 << (bits - 1), np.int16)
        if zeros is not None:
            stream = np.ascontiguousarray(whole(zeros).T).view(np.uint8)
            found = unpack_codes(stream, bits, n).astype(np.int16).T
        return floats(scales), np.ascontiguousarray(found)

    known: list[tuple[F32, I16]] = []

    def read(start: int, stop: int) -> Codes:
        if not known:
            known.append(steps())
        codes = unpack_codes(q.raw(start, stop).view(np.uint8), bits, k)
        return Codes(codes, known[0][0][start:stop], known[0][1][start:stop])

    entries.made[name] = Packed(name, (n, k), bits, size, read, steps)


def _int_or_float(
    stem: str, group: int, whole_codes: bool, entries: Entries, *, by_channel: bool
) -> None:
    """One byte a value: int8, or F8 with a scale for a row or for all. by_channel: products have
    activations of 8 bits with one scale a token."""
    name = f"{stem}.weight"
    q = entries.take(name, "I8" if whole_codes else "F8_E4M3", rank=2)
    n, k = q.shape
    size = k if group == -1 else group
    scale = entries.take(f"{name}_scale", *FLOATS)
    if scale.shape not in ((n, -(-k // max(size, 1))), (n,), (1,), ()) or size < 1:
        raise entries.fault(f"tensor {name + '_scale'!r} is {list(scale.shape)} for {[n, k]}")

    def scales() -> F32:
        return np.broadcast_to(floats(scale).reshape(scale.shape if len(scale.shape) == 2 else
                                                      (-1, 1)), (n, -(-k // size)))  # fmt: skip

    if not whole_codes:
        entries.made[name] = Float(
            (n, k), lambda start, stop: e4m3(q.raw(start, stop)) * scales()[start:stop].repeat(
                size, axis=1)[:, :k]
        )  # fmt: skip
        return

    def steps() -> tuple[F32, I16]:
        found = np.ascontiguousarray(scales())
        return found, np.full(found.shape, 128, np.int16)

    def read(start: int, stop: int) -> Codes:
        codes = (q.raw(start, stop).astype(np.int16) + 128).astype(np.uint8)
        found, zeros = steps()
        return Codes(codes, found[start:stop], zeros[start:stop])

    kind = Channels if by_channel and size == k and not channel_fault((n, k)) else Packed
    entries.made[name] = kind(name, (n, k), 8, size, read, steps)


METHODS: Mapping[str, Callable[[Settings, Entries], None]] = {
    "gptq": gptq, "awq": awq, "compressed-tensors": compressed_tensors,
    "bitsandbytes": bitsandbytes, "fp8": fp8, "mxfp4": mxfp4,
}  # fmt: skip


def unpacked(
    where: str, config: Mapping[str, Any], tensors: Mapping[str, SourceTensor]
) -> tuple[dict[str, Any], dict[str, SourceTensor]]:
    """Config and tensors of a checkpoint in codes, its matrices under their families' names. A
    method that is not read leaves both as they are. Raises ConvertError."""
    settings = config.get("quantization_config")
    if not isinstance(settings, dict) or str(settings.get("quant_method")) not in METHODS:
        return dict(config), dict(tensors)
    entries = Entries(where, tensors)
    entries.biased = str(config.get("model_type")).startswith("qwen2")
    METHODS[str(settings["quant_method"])](settings, entries)
    clash = sorted(set(entries.made) & set(entries.tensors))
    if clash:
        raise entries.fault(f"tensor {clash[0]!r} is there in codes and without")
    if not entries.made:
        return dict(config), dict(tensors)
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    return plain, {**entries.tensors, **entries.made}


def check_order(tensors: Mapping[str, SourceTensor]) -> None:
    """Raise ConvertError for a matrix whose codes nothing can take over."""
    for name, tensor in tensors.items():
        if reason := getattr(tensor, "refusal", ""):
            raise ConvertError(
                f"tensor {name!r} {reason}, expected groups of neighbouring inputs",
                code="act-order",
                hint="convert with --quant int4 (or another), which chooses the codes anew, or "
                "take a checkpoint that was made without desc_act",
            )
