"""Cases of the catalogue for ops on grids: arguments of `test_catalogue.Case` by op."""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]


def conv(
    encoding: str, cin: int, cout: int, grid: tuple[int, int], *, bias: bool = True, **more: int
) -> Spec:
    """more: kernel, stride, pad_before, pad_after."""
    side = more.get("kernel", 3)
    weights: dict[str, Any] = {"weight": ((cout, side * side * cin), encoding)}
    if bias:
        weights["bias"] = ((cout,), "f32")
    (height, width), shape = grid, "-".join(str(n) for n in more.values())
    return {
        "width": cin, "rows": height * width, "weights": weights,
        "inputs": {"x": (height * width, cin)},
        "attrs": {"height": height, "width": width, **more},
        "label": f"{encoding}-{cout}-{height}x{width}{'-bias' * bias}-{shape}",
    }  # fmt: skip


def norm(width: int, groups: int, rows: int) -> Spec:
    weights = {slot: ((width,), "f32") for slot in ("weight", "bias")}
    attrs = {"groups": groups, "eps": 1e-6}
    return {
        "width": width, "rows": rows, "weights": weights, "attrs": attrs,
        "label": str(groups),
    }  # fmt: skip


def upsample(width: int, grid: tuple[int, int], factor: int) -> Spec:
    height, across = grid
    return {
        "width": width, "rows": height * across, "inputs": {"x": (height * across, width)},
        "attrs": {"height": height, "width": across, "factor": factor},
        "label": f"{height}x{across}-{factor}",
    }  # fmt: skip


def cases(stored: list[str]) -> dict[str, list[Spec]]:
    """stored: encodings that every op with a matrix is tried with."""
    lower, wide = {"pad_before": 0, "pad_after": 1}, {"pad_before": 1, "pad_after": 2}
    floats = [
        spec
        for encoding in ("f32", "f16")
        for spec in (
            conv(encoding, 3, 64, (9, 7)),
            conv(encoding, 64, 3, (5, 13), bias=False),
            conv(encoding, 4, 63, (8, 8), kernel=1, pad_before=0, pad_after=0),
            conv(encoding, 63, 4, (1, 10), kernel=4, **wide),
            conv(encoding, 64, 64, (11, 10), kernel=3, stride=2, **lower),
            conv(encoding, 320, 96, (6, 5)),
            conv(encoding, 63, 20, (33, 32)),
            conv(encoding, 64, 64, (1030, 1), kernel=3, stride=1, **wide),
            conv(encoding, 5, 20, (30, 31), kernel=4, stride=3, pad_before=2, pad_after=0),
        )
    ]
    coded = [
        spec
        for encoding in stored
        if encoding not in ("f32", "f16")
        for spec in (
            conv(encoding, 64, 63, (7, 9)),
            conv(encoding, 3, 20, (12, 11), kernel=4, stride=2, bias=False, **lower),
        )
    ]
    coded += [conv("int8-g32", 63, 5, (1, 1)), conv("int4-g32", 320, 320, (5, 4), kernel=1,
              pad_before=0, pad_after=0)]  # fmt: skip
    coded += [
        conv(f"sparse{bits}-s{count}", 64, 63, (7, 9)) for bits in (8, 16) for count in (288, 36)
    ]
    return {
        "conv2d": floats + coded,
        "group_norm": [
            norm(4, 4, 1), norm(63, 7, 63), norm(64, 4, 500), norm(320, 32, 130), norm(3, 1, 1000),
        ],
        "upsample": [upsample(3, (5, 4), 2), upsample(64, (1, 9), 3), upsample(63, (7, 1), 1)],
    }  # fmt: skip
