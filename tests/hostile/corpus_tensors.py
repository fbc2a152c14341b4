"""Rows H01 to H05: tensor files that are none, lie about their size, or disagree with the graph."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tests.hostile.spoil import (
    GRAPH,
    WEIGHTS,
    edit_header,
    edit_json,
    file_of,
    header_of,
    set_weights,
    spoils,
    vector,
)
from tests.tiny import reseal

# H01: no tensor file at all


@spoils("H01", "tensor-header", WEIGHTS, "header", "0 bytes", "at least 10")
def empty(bundle: Path) -> None:
    set_weights(bundle, b"")


@spoils("H01", "tensor-header", WEIGHTS, "header", "7 bytes", "at least 10")
def seven_bytes(bundle: Path) -> None:
    set_weights(bundle, b"\x02\0\0\0\0\0\0")


@spoils("H01", "tensor-header", WEIGHTS, "header", "expected 2 to 992")
def random_bytes(bundle: Path) -> None:
    set_weights(bundle, random.Random(1).randbytes(1000))


@spoils("H01", "tensor-header", WEIGHTS, "begins with b'PK", "expected b'{'")
def another_format(bundle: Path) -> None:
    set_weights(bundle, file_of(b"PK\x03\x04" + bytes(60), b""))


@spoils("H01", "tensor-header", WEIGHTS, "not JSON", "expected one JSON object in UTF-8")
def header_not_utf8(bundle: Path) -> None:
    set_weights(bundle, file_of(b'{"\xff": 1}', b""))


# H02: absurd header lengths


@spoils("H02", "tensor-header", "9223372036854775808", "expected 2 to")
def length_two_to_63(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}" + bytes(62), b"", 1 << 63))


@spoils("H02", "tensor-header", "9223372036854775807", "expected 2 to 64")
def length_one_less_than_two_to_63(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}" + bytes(62), b"", (1 << 63) - 1))


@spoils("H02", "tensor-header", "18446744073709551608", "expected 2 to 64")
def length_that_wraps_with_its_field(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}" + bytes(62), b"", (1 << 64) - 8))


@spoils("H02", "tensor-header", "18446744073709551615", "expected 2 to")
def length_all_ones(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}" + bytes(62), b"", (1 << 64) - 1))


@spoils("H02", "tensor-header", "1073741824", "the file has 72")
def length_past_the_file(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}" + bytes(62), b"", 1 << 30))


@spoils("H02", "tensor-header", "17825792", "the limit is 16777216")
def length_over_our_limit(bundle: Path) -> None:
    (bundle / WEIGHTS).write_bytes((17 << 20).to_bytes(8, "little") + b"{}")
    with open(bundle / WEIGHTS, "r+b") as file:
        file.truncate(20 << 20)  # sparse
    reseal(bundle)


@spoils("H02", "tensor-header", "not JSON", "expected one JSON object")
def header_nested_deep(bundle: Path) -> None:
    set_weights(bundle, file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", b""))


# H03: truncated copies


@spoils("H03", "file-size", WEIGHTS, "bytes, the manifest expects", "bytes")
def truncated_copy(bundle: Path) -> None:
    data = (bundle / WEIGHTS).read_bytes()
    (bundle / WEIGHTS).write_bytes(data[:-1000])


@spoils(
    "H03", "tensor-truncated", "tensor", "the file has", "1000 of", "expected bytes are missing"
)
def truncated_and_resealed(bundle: Path) -> None:
    set_weights(bundle, (bundle / WEIGHTS).read_bytes()[:-1000])


# H04: offsets and shapes


@spoils("H04", "tensor-offsets", "overlaps tensor", "begins at byte", "expected")
def overlap(bundle: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        last = max(header.values(), key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"] = [n - 16 for n in last["data_offsets"]]

    edit_header(bundle, change)


@spoils("H04", "tensor-offsets", "leaves a gap after", "expected")
def gap(bundle: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        last = max(header.values(), key=lambda entry: entry["data_offsets"][1])
        last["data_offsets"] = [n + 16 for n in last["data_offsets"]]

    edit_header(bundle, change)


@spoils("H04", "tensor-offsets", "tensor 'norm'", "data_offsets", "expected [begin, end]")
def reversed_offsets(bundle: Path) -> None:
    edit_header(bundle, lambda header: vector(header)["data_offsets"].reverse())


@spoils("H04", "tensor-offsets", "tensor 'norm'", "[-256, 0]", "0 <= begin")
def negative_offsets(bundle: Path) -> None:
    edit_header(bundle, lambda header: vector(header).update(data_offsets=[-256, 0]))


@spoils("H04", "tensor-offsets", "tensor 'norm'", "[0.0, 256.0]", "expected [begin, end]")
def float_offsets(bundle: Path) -> None:
    edit_header(bundle, lambda header: vector(header).update(data_offsets=[0.0, 256.0]))


@spoils("H04", "tensor-offsets", "64 bytes follow", "expected the file to end at byte")
def trailing_bytes(bundle: Path) -> None:
    set_weights(bundle, (bundle / WEIGHTS).read_bytes() + bytes(64))


@spoils("H04", "tensor-offsets", "follow the header", "expected the file to end at byte")
def no_tensors_but_data(bundle: Path) -> None:
    set_weights(bundle, file_of(b"{}", bytes(64)))


def _shape(name: str, shape: Any, code: str, *says: str) -> None:
    def apply(bundle: Path) -> None:
        edit_header(bundle, lambda header: vector(header).update(shape=shape))

    spoils("H04", code, "tensor 'norm'", *says, name=name)(apply)


_shape("shape_overflow", [1 << 30] * 8, "tensor-shape", "takes", "bytes, its byte range holds 256")
_shape("shape_overflow_to_zero", [1 << 30, 1 << 30, 16], "tensor-shape", "its byte range holds 256")
_shape(
    "shape_overflow_to_itself", [(1 << 31) - 1] * 4 + [64], "tensor-shape", "its byte range holds"
)
_shape("dims_beyond_any_integer", [1 << 70, 0], "tensor-shape", "expected sizes 0 to 2147483647")
_shape("negative_pair", [-8, -8], "tensor-shape", "[-8, -8]", "expected sizes 0 to 2147483647")
_shape("negative_dim", [-64], "tensor-shape", "[-64]", "expected sizes 0 to 2147483647")
_shape("zero_dim", [64, 0], "tensor-shape", "takes 0 bytes", "holds 256")
_shape("huge_dim", [1 << 31], "tensor-shape", "[2147483648]", "expected sizes 0 to 2147483647")
_shape("rank_40", [1] * 39 + [64], "tensor-shape", "rank 40", "the limit is 8")
_shape("float_dim", [64.0], "tensor-shape", "[64.0]", "expected sizes")
_shape("bool_dim", [64, True], "tensor-shape", "[64, True]", "expected sizes")
_shape("shape_no_list", "64", "tensor-shape", "shape 64", "expected sizes")


@spoils("H04", "weights-names", "expected", "unexpected ['nothing']")
def empty_tensor_nobody_asked_for(bundle: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    edit_header(bundle, lambda header: header.update(nothing=entry))


@spoils("H04", "weights-alignment", "begins at byte", "expected a multiple of 2")
def misaligned(bundle: Path) -> None:
    header, data = header_of((bundle / WEIGHTS).read_bytes())
    text = json.dumps(header).encode()
    set_weights(bundle, file_of(text + b" " * (-(8 + len(text)) % 64 + 1), data))


# H05: quantized tensors that disagree


@spoils("H05", "weights-shape", "'l0.qkv' [128, 64]", "q U8 [128, 1, 32]", "scales F16 [128, 2]",
        "expected l0.qkv.q U8 [128, 2, 16]")  # fmt: skip
def int4_codes_of_other_groups(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["l0.qkv.q"].update(shape=[128, 1, 32]))


@spoils("H05", "weights-shape", "'l0.qkv' [128, 64]", "q U8 [128, 2, 16]", "scales F16 [64, 4]",
        "l0.qkv.scales F16 [128, 2]")  # fmt: skip
def int4_scales_of_other_rows(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["l0.qkv.scales"].update(shape=[64, 4]))


@spoils("H05", "weights-shape", "'embed' [260, 64] in int8-g32", "q U8 [260, 4, 16]",
        "scales F16 [260, 2]", "expected embed.q U8 [260, 2, 32]")  # fmt: skip
def int8_codes_of_other_groups(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["embed.q"].update(shape=[260, 4, 16]))


@spoils("H05", "weights-shape", "scales BF16 [128, 2]", "scales F16 [128, 2]")
def scales_of_another_type(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["l0.qkv.scales"].update(dtype="BF16"))


@spoils("H05", "weights-shape", "'l0.qkv' [128, 64]", "q U8 [128, 2, 16]", "scales F16 [256]",
        "l0.qkv.scales F16 [128, 2]")  # fmt: skip
def int4_scales_flat(bundle: Path) -> None:
    edit_header(bundle, lambda header: header["l0.qkv.scales"].update(shape=[256]))


@spoils("H05", "weights-shape", "'l0.qkv' [128, 64] in int8-g32", "q U8 [128, 2, 16]",
        "expected l0.qkv.q U8 [128, 2, 32]")  # fmt: skip
def int4_declared_int8(bundle: Path) -> None:
    edit_json(bundle, GRAPH, lambda g: g["weights"]["l0.qkv"].update(encoding="int8-g32"))


@spoils("H05", "weights-names", "missing ['l0.qkv.scales']", "unexpected ['l0.qkv.zero_points']")
def zero_points_instead_of_scales(bundle: Path) -> None:
    def change(header: dict[str, Any]) -> None:
        header["l0.qkv.zero_points"] = header.pop("l0.qkv.scales")

    edit_header(bundle, change)


def _encoding(name: str, encoding: str) -> None:
    def apply(bundle: Path) -> None:
        edit_json(bundle, GRAPH, lambda graph: graph["weights"]["l0.qkv"].update(encoding=encoding))

    spoils("H05", "graph", "weight 'l0.qkv'", repr(encoding), "int4-g32", name=name)(apply)


_encoding("group_size_zero", "int4-g0")
_encoding("group_size_not_dividing", "int4-g48")
