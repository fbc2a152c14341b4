"""Sparse codes: their names, bytes and values, their dense form, and what breaks the format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from edgert.kernels import encodings, sparse
from edgert.kernels.encodings import ENCODINGS, damage, dequantize
from edgert.kernels.quant import F32, Quantized
from edgert.kernels.sparse import BITS, FORMS, densified, parse, quantize

from ..closeness import distance

# k and s: no multiples of 64 and 32, multiples of them, one past them, s = k
SIZES = [(100, 40), (128, 64), (65, 33), (64, 64), (63, 63), (1, 1), (96, 1), (130, 129)]


def code(k: int, s: int, n: int = 37, seed: int = 0) -> tuple[F32, np.ndarray]:
    """Values that are 0 where the mask is, and an explicit zero, which keeps its place."""
    draw = np.random.default_rng([seed, k, s])
    mask = np.zeros((n, k), np.bool_)
    for row in mask:
        row[draw.choice(k, s, replace=False)] = True
    values = np.where(mask, draw.standard_normal((n, k)), 0).astype(np.float16).astype(np.float32)
    values[0, np.flatnonzero(mask[0])[0]] = 0
    return values, mask


def stored(k: int, s: int, bits: int, n: int = 37, seed: int = 0) -> Quantized:
    return quantize(*code(k, s, n, seed), bits)


def spoiled(w: Quantized, **tensors: Any) -> Quantized:
    return Quantized(w.encoding, w.shape, {**w.tensors, **tensors})


# --- names ------------------------------------------------------------------------------------


def test_any_count_has_a_row_and_only_fixed_rows_are_listed() -> None:
    fixed = list(ENCODINGS)
    assert not [name for name in fixed if name.startswith("sparse")]
    assert len(fixed) == len(ENCODINGS)
    for bits in BITS:
        name = f"sparse{bits}-s448"
        row = ENCODINGS[name]
        assert name in ENCODINGS
        assert ENCODINGS.get(name) == row
        assert (row.name, row.bits) == (name, bits)
        assert row.cpu == ENCODINGS[row.dense].cpu
    assert list(ENCODINGS) == fixed
    assert ENCODINGS.get("sparse4", None) is None
    assert not [name for name in encodings.asked().values() if "sparse" in name]


@pytest.mark.parametrize(
    "name",
    ["sparse4", "sparse4-s", "sparse4-s0", "sparse4-s01", "sparse4-s-1", "sparse7-s8",
     "sparse04-s8", "sparse1-s8", "sparse4-s1.0", "sparse4-s1e3", "sparse4-s8 ", "sparse4-s8\n",
     "Sparse4-s8", "sparse4-s\u0668", "sparse4-s8-g32", "sparse4-s" + "9" * 11,
     "sparse4-s" + "9" * 5000],
)  # fmt: skip
def test_other_names_are_unknown(name: str) -> None:
    assert parse(name) is None
    assert name not in ENCODINGS
    with pytest.raises(KeyError):
        ENCODINGS[name]
    fault = encodings.fault(name, (8, 64))
    assert fault.startswith(f"has encoding {name[:80]!r}, expected one of ['f32',")
    assert "'sparse4-s<count>'" in fault
    assert len(fault) < 2000


def test_which_shapes_sparse_codes_take() -> None:
    assert not encodings.fault("sparse4-s64", (8, 64))
    assert encodings.fault("sparse4-s65", (8, 64)) == (
        "has encoding 'sparse4-s65' and has rows of 64, expected at least the 65 values that are "
        "kept"
    )
    assert "expected at least the 9999999999 values" in encodings.fault(
        "sparse8-s9999999999", (8, 64)
    )
    assert "is of rank 1, expected one of [2]" in encodings.fault("sparse8-s2", (64,))


# --- bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("k", "s"), SIZES)
def test_bytes_are_those_of_the_description(k: int, s: int, bits: int) -> None:
    """Read back with Python's own integers."""
    values, mask = code(k, s)
    w = quantize(values, mask, bits)
    tensors = encodings.tensors_of(w)
    for tensor in ENCODINGS[w.encoding].tensors:
        assert tensors[tensor.key].shape == tensor.shape(w.shape)
    found = np.zeros((37, k), np.float32)
    for n in range(37):
        word = int.from_bytes(w.tensors["mask"][n].tobytes(), "little")
        assert (word.bit_count(), word.bit_length() <= k) == (s, True)
        atoms = [a for a in range(k) if word >> a & 1]
        assert atoms == np.flatnonzero(mask[n]).tolist()
        if bits == 16:
            found[n, atoms] = w.tensors["values"][n]
            continue
        stream = int.from_bytes(w.q[n].tobytes(), "little")
        assert stream >> s * bits == 0
        codes = [stream >> bits * j & (1 << bits) - 1 for j in range(s)]
        for atom, one in zip(atoms, codes, strict=True):
            found[n, atom] = np.float32(one - (1 << bits - 1)) * np.float32(w.scales[n, atom // 64])
    assert np.array_equal(dequantize(w), found)
    assert not damage(w)
    if bits == 16:
        assert np.array_equal(found, values)


@pytest.mark.parametrize("bits", BITS[:-1])
@pytest.mark.parametrize(("k", "s"), SIZES)
def test_codes_are_within_half_a_step(k: int, s: int, bits: int) -> None:
    values, mask = code(k, s)
    w = quantize(values, mask, bits)
    scales = w.scales.astype(np.float64).repeat(64, axis=1)[:, :k]
    levels = np.divide(values, scales, out=np.zeros_like(scales), where=scales != 0)
    highest = 127 if bits == 8 else (1 << bits - 1) - 1  # the shorter side
    error = np.abs(dequantize(w) - values)
    assert (error <= np.abs(scales) * np.where(levels > highest, 1.001, 0.501)).all()


def test_eight_bits_leave_the_lowest_code_out() -> None:
    w = stored(128, 64, 8)
    assert w.q.min() >= 1


def test_more_bits_are_closer() -> None:
    values, mask = code(300, 140)
    errors = [distance(values, dequantize(quantize(values, mask, bits)))[0] for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("k", "s"), SIZES)
def test_the_dense_form_has_the_same_values(k: int, s: int, bits: int) -> None:
    w = stored(k, s, bits)
    dense = densified(w)
    row = ENCODINGS[w.encoding]
    assert encodings.encoding_of(dense).name == row.dense
    assert row.dense == {8: "int8-g32", 16: "f16"}.get(bits, f"int{bits}-g64")
    assert dequantize(dense).tobytes() == dequantize(w).tobytes()
    assert not damage(dense)
    tensors = encodings.tensors_of(dense)
    for tensor in ENCODINGS[row.dense].tensors:
        assert tensors[tensor.key].shape == tensor.shape(w.shape)


@pytest.mark.parametrize("bits", BITS)
def test_rows_and_blocks_of_a_sparse_weight(bits: int) -> None:
    w = stored(130, 40, bits)
    row, wide = ENCODINGS[w.encoding], dequantize(w)
    assert encodings.encoding_of(row.load(w.tensors, w.shape)) == row
    for index in (slice(3, 9), np.array([5, 0, 5])):
        part = encodings.rows_of(w, index)
        assert np.array_equal(dequantize(part), wide[index])
        assert not damage(part)
    assert (row.blocks is None) == (bits == 16)
    if row.blocks is not None:
        codes, scales = row.blocks(w.tensors)
        whole = (codes * scales[..., None]).reshape(37, -1)
        assert np.array_equal(whole[:, :130], wide)
        assert not whole[:, 130:].any()


def test_only_sparse_weights_have_a_dense_form() -> None:
    w = encodings.quantize(np.ones((2, 64), np.float32), "int4-g32")
    assert isinstance(w, Quantized)
    with pytest.raises(ValueError, match=r"a weight in int4-g32, expected one of \['sparse2-s<"):
        densified(w)


# --- what breaks the format -------------------------------------------------------------------


def test_a_mask_that_breaks_the_format_is_named() -> None:
    for bits in (4, 16):
        w = stored(100, 40, bits)
        past, more, less = (w.tensors["mask"].copy() for _ in range(3))
        past[2, 12] |= 1 << 4
        free = int(np.flatnonzero(np.unpackbits(more[3], bitorder="little")[:100] == 0)[0])
        more[3, free // 8] |= 1 << free % 8
        less[36] = 0
        less[35, 1] ^= 255  # the total may stay right
        for mask, wrong in [
            (past, "row 2 of the mask has bits past its 100 atoms, expected zeros"),
            (more, "row 3 of the mask keeps 41 atoms, expected 40"),
            (less, "of the mask keeps"),
        ]:
            broken = spoiled(w, mask=mask)
            assert wrong in damage(broken)
            with pytest.raises(ValueError, match="of the mask"):
                dequantize(broken)


def test_values_that_break_the_format_are_named() -> None:
    w = stored(100, 41, 3)
    scales, q = w.scales.copy(), w.q.copy()
    scales[1, 1], scales[2, 0] = np.nan, np.inf
    q[5, -1] |= 128
    assert damage(spoiled(w, scales=scales)) == "2 of 74 scales are not finite, expected none"
    assert damage(spoiled(w, q=q)) == "bits past the last code of a row are set, expected zeros"


def test_rows_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "PIECE", 1600)
    w = stored(100, 40, 4, n=70)
    mask = w.tensors["mask"].copy()
    mask[66, 0] ^= 1
    assert "row 66 of the mask keeps" in damage(spoiled(w, mask=mask))
    assert [(p.start, p.stop) for p in sparse.pieces(70, 100)] == [
        (0, 16), (16, 32), (32, 48), (48, 64), (64, 70),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v, m: (v, m, 7), r"bits is 7, expected one of \[2, 3, 4, 5, 6, 8, 16\]"),
        (lambda v, m: (v, m.astype(np.uint8), 4), r"the mask is uint8 \[37, 100\], expected bool"),
        (lambda v, m: (v, m[:5], 4), r"the mask is bool \[5, 100\], expected bool \[37, 100\]"),
        (lambda v, m: (v, m & (v > 0), 4), "rows of the mask keep [0-9]+ to [0-9]+ values"),
        (lambda v, m: (v, m & False, 4), "keep 0 to 0 values, expected as many in every row"),
        (lambda v, m: (v * 1e9, m, 4), "does not fit float16"),
        (lambda v, m: (v * 1e9, m, 16), "does not fit float16"),
        (lambda v, m: (v * np.float32(np.nan), m, 4), "does not fit float16"),
        (lambda v, m: (v * np.float32(np.nan), m, 16), "does not fit float16"),
    ],
)
def test_what_cannot_be_stored_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize(*change(*code(100, 40)))


def test_values_that_are_not_kept_do_not_count() -> None:
    values, mask = code(100, 40)
    noise = np.where(mask, values, np.float32(np.nan))
    assert np.array_equal(
        dequantize(quantize(noise, mask, 4)), dequantize(quantize(values, mask, 4))
    )


def test_forms_are_told_in_messages() -> None:
    assert FORMS == tuple(f"sparse{bits}-s<count>" for bits in BITS)
