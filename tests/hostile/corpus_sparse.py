"""Row H05 of sparse weights: masks, scales and counts that kernels could not rely on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from edgert.kernels import sparse
from edgert.kernels.quant import Quantized
from numpy.typing import NDArray

from edgert.graph import Weight
from tests.hostile.spoil import GRAPH, WEIGHTS, edit_header, edit_json, set_weights, spoils
from tests.tiny import reseal, tiny_graph, tiny_weights, write_weights

NAME, K, COUNT = "l0.down", 96, 41  # [64, 96], so that a row's mask has 32 bits past it
Tensors = dict[str, NDArray[Any]]


def store(bundle: Path, bits: int, change: Callable[[Tensors], Any] = lambda t: None) -> None:
    """The bundle anew, one of its weights sparse, with its tensors changed."""
    graph = tiny_graph()
    weights = tiny_weights(graph)
    draw = np.random.default_rng(0)
    mask = draw.random((64, K)).argsort(axis=1) < COUNT
    stored = sparse.quantize(draw.standard_normal((64, K)).astype(np.float32), mask, bits)
    tensors = {key: array.copy() for key, array in stored.tensors.items()}
    change(tensors)
    weights[NAME] = Quantized(stored.encoding, stored.shape, tensors)
    declared = {**graph.weights, NAME: Weight((64, K), stored.encoding)}
    graph = graph.replace(weights=declared)
    (bundle / GRAPH).write_bytes(graph.to_json())
    (bundle / WEIGHTS).unlink()
    write_weights(bundle / WEIGHTS, graph, weights)
    reseal(bundle)


def _flip(key: str, row: int, byte: int, bits: int) -> Callable[[Tensors], Any]:
    def change(tensors: Tensors) -> None:
        tensors[key][row, byte] ^= bits

    return change


def _first_of(row: int) -> Callable[[Tensors], Any]:
    """One kept atom less in a row, one more in the next: the total stays."""

    def change(tensors: Tensors) -> None:
        wide = np.unpackbits(tensors["mask"], axis=1, bitorder="little")
        wide[row, np.flatnonzero(wide[row])[0]] = 0
        wide[row + 1, np.flatnonzero(wide[row + 1, :K] == 0)[0]] = 1
        tensors["mask"][:] = np.packbits(wide, axis=1, bitorder="little")

    return change


def _scale(value: float) -> Callable[[Tensors], Any]:
    def change(tensors: Tensors) -> None:
        tensors["scales"][7, 1] = value

    return change


def _tensors(name: str, bits: int, change: Callable[[Tensors], Any], *says: str) -> None:
    told = (f"'{NAME}' [64, {K}] in sparse{bits}-s{COUNT}", *says)
    spoils("H05", "weights-values", *told, name=f"sparse_{name}")(
        lambda bundle: store(bundle, bits, change)
    )


_tensors("atom_past_the_end", 4, _flip("mask", 3, 12, 1), "row 3 of the mask has bits past its 96")
_tensors("atom_far_past", 16, _flip("mask", 0, 15, 128), "row 0 of the mask has bits past its 96")
_tensors("other_count", 3, _flip("mask", 63, 5, 4), "row 63 of the mask keeps", "expected 41")
_tensors("counts_that_make_up", 8, _first_of(9), "row 9 of the mask keeps 40", "expected 41")
_tensors("scale_nan", 4, _scale(np.nan), "1 of 128 scales are not finite", "expected none")
_tensors("scale_infinite", 8, _scale(-np.inf), "1 of 128 scales are not finite", "expected none")
_tensors("padding_bits", 3, _flip("q", 5, 15, 128), "bits past the last code", "expected zeros")


def _shape(name: str, bits: int, key: str, shape: list[int], *says: str) -> None:
    def apply(bundle: Path) -> None:
        store(bundle, bits)
        edit_header(bundle, lambda header: header[f"{NAME}.{key}"].update(shape=shape))

    spoils("H05", "weights-shape", *says, name=f"sparse_{name}")(apply)


_shape(
    "codes_of_other_rows", 4, "q", [32, 42], "q U8 [32, 42]", f"expected {NAME}.mask U8 [64, 16]"
)
_shape("mask_of_other_rows", 4, "mask", [128, 8], "mask U8 [128, 8]", "mask U8 [64, 16]")
_shape("values_of_other_rows", 16, "values", [41, 64], "F16 [41, 64]", "values F16 [64, 41]")
_shape("values_flat", 16, "values", [41 * 64], "F16 [2624]", "values F16 [64, 41]")


@spoils("H05", "tensor-truncated", "1000 of", "expected bytes are missing")
def sparse_truncated(bundle: Path) -> None:
    store(bundle, 4)
    set_weights(bundle, (bundle / WEIGHTS).read_bytes()[:-1000])


@spoils("H05", "weights-names", "missing ['l0.down.scales']", "unexpected ['l0.down.zeros']")
def sparse_without_scales(bundle: Path) -> None:
    store(bundle, 4)
    edit_header(bundle, lambda h: h.update({f"{NAME}.zeros": h.pop(f"{NAME}.scales")}))


@spoils("H05", "weights-shape", "q U8 [64, 21]", "expected", "q U8 [64, 26]")
def sparse_of_other_bits(bundle: Path) -> None:
    store(bundle, 4)
    edit_json(bundle, GRAPH, lambda g: g["weights"][NAME].update(encoding=f"sparse5-s{COUNT}"))


def _name(name: str, encoding: str, *says: str) -> None:
    def apply(bundle: Path) -> None:
        edit_json(bundle, GRAPH, lambda graph: graph["weights"][NAME].update(encoding=encoding))

    spoils("H05", "graph", f"weight {NAME!r}", *says, name=f"sparse_{name}")(apply)


_name("count_zero", "sparse4-s0", "'sparse4-s0'", "expected one of", "sparse4-s<count>")
_name("count_above_the_row", "sparse4-s97", "rows of 96, expected at least the 97 values")
_name("count_absurd", "sparse4-s" + "9" * 100_000, "expected one of", "sparse4-s<count>")
_name("count_beyond_memory", "sparse16-s9999999999", "expected at least the 9999999999 values")
_name("leading_zero", "sparse4-s041", "'sparse4-s041'", "expected one of")
_name("bits_unknown", "sparse7-s41", "'sparse7-s41'", "expected one of")
