"""What the public functions of this room ask of their arguments, said in edgert's errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConvertError

F64 = NDArray[np.float64]


def matrix(array: Any, what: str, *, rows: int | None = None, columns: int | None = None) -> F64:
    """`array` as a float64 matrix `[rows, columns]`, contiguous by rows.

    Raises ConvertError for another number of axes, no entries, a type that is not real numbers,
    the wrong size, or NaN and infinity (with how many and where the first one stands).
    """
    found = np.asarray(array)
    if found.dtype.kind not in "fiu":
        raise ConvertError(f"{what} has type {found.dtype}, expected real numbers")
    if found.ndim != 2 or not found.size:
        raise ConvertError(f"{what} has shape {found.shape}, expected a matrix that is not empty")
    for axis, side, expected in ((0, "rows", rows), (1, "columns", columns)):
        if expected is not None and found.shape[axis] != expected:
            raise ConvertError(
                f"{what} has {found.shape[axis]} {side}, expected {expected}",
                hint="weights here are [inputs, outputs]: transpose a torch weight first",
            )
    wide = np.ascontiguousarray(found, np.float64)
    bad = ~np.isfinite(wide)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ConvertError(
            f"{what} holds {np.count_nonzero(bad)} values that are NaN or infinite of {wide.size},"
            f" the first at [{row}, {column}]; expected finite values",
            hint="the checkpoint is damaged or its training diverged: take another one",
        )
    return wide


def whole(value: Any, what: str, least: int, most: int | None = None) -> int:
    """`value` as an int within `[least, most]`; ConvertError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConvertError(f"{what} is {value!r}, expected an integer")
    if value < least or (most is not None and value > most):
        limits = f"at least {least}" if most is None else f"{least} to {most}"
        raise ConvertError(f"{what} is {value}, expected {limits}")
    return int(value)


def fraction(value: Any, what: str, least: float, below: float) -> float:
    """`value` as a float within `[least, below)`; ConvertError otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating):
        raise ConvertError(f"{what} is {value!r}, expected a number")
    if not least <= value < below:
        raise ConvertError(f"{what} is {value}, expected {least:g} <= {what} < {below:g}")
    return float(value)


def one_of(value: Any, what: str, choices: tuple[str, ...]) -> str:
    """`value` if it is among `choices`; ConvertError otherwise."""
    if value not in choices:
        raise ConvertError(f"{what} is {value!r}, expected one of {', '.join(choices)}")
    return str(value)
