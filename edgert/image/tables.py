"""Calibrations of cache policies on disk: sensitivities for SenCache, and what MagCache and
TeaCache need of the same model.

The format is `.npz` as NumPy writes it: one-dimensional float64 arrays, and metadata as JSON in an
array of bytes. The reader here takes nothing else, so it neither unpickles nor inflates more than
the limits say (`limits.CACHE_TABLE_BYTES`, `CACHE_TABLE_STEPS`). Not promised: that a table of one
model, quantisation or prediction type means anything for another; such a use is refused.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import BundleError
from ..notices import notice
from ..storage.aside import write_output
from ..storage.strict_json import parse as parse_json
from ..storage.typed import Reader

F64 = NDArray[np.float64]
VERSION = 1
COLUMNS = ("t", "sigma", "alpha_x", "alpha_t_rms", "std_x", "std_t")
EXTRAS = ("gammas", "polynomial")
_MAGIC = b"\x93NUMPY\x01\x00"
_HEADER = re.compile(
    rb"\{'descr': '(<f8|\|u1)', 'fortran_order': False, 'shape': \((\d{1,9}),\), \} *\n"
)


class TableInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a table is of. model, quantisation: hash of the weights and name of their encoding.
    prediction, scheduler, steps, shift: of the sampler. latent: shape of one latent. t_unit: what
    the network's t counts. samples: how many trajectories were averaged."""

    model: str
    quantisation: str
    prediction: str
    scheduler: str
    steps: int
    latent: tuple[int, ...]
    samples: int
    shift: float | None = None
    t_unit: str = "training steps"
    calibration: Literal["trajectory", "forward"] = "trajectory"
    branch: str = "cond"
    thresholds: dict[str, tuple[tuple[float, float], ...]] = {}
    version: int = VERSION


_INFO = Reader(TableInfo)


@dataclass(frozen=True, eq=False, kw_only=True)
class SensitivityTable:
    """Sensitivities of a network along a schedule, float64 [T] each.

    t: what the network was given. sigma: noise levels. alpha_x: mean of ‖Δf‖/‖Δx‖. alpha_t_rms: of
    ‖Δf‖/(√D |Δt|), so that it holds for other resolutions. std_x, std_t: their deviations over the
    samples. gammas: MagCache's [T], polynomial: TeaCache's, highest power first; None where they
    were not measured. Raises BundleError for values that cannot be.
    """

    t: F64
    sigma: F64
    alpha_x: F64
    alpha_t_rms: F64
    std_x: F64
    std_t: F64
    info: TableInfo
    gammas: F64 | None = None
    polynomial: F64 | None = None

    def __post_init__(self) -> None:
        for name in (*COLUMNS, *EXTRAS):
            column = getattr(self, name)
            if column is not None:
                _check_column(name, column, len(self.t))
        empty = np.flatnonzero((self.alpha_x == 0) & (self.alpha_t_rms == 0))
        if len(empty):
            raise _bad(f"row {empty[0]} of {len(self.t)} has no sensitivity, expected more than 0")

    def check(self, wanted: TableInfo) -> None:
        """Raise BundleError unless this table is of the wanted model, quantisation and prediction
        type; another scheduler, shift or number of steps is a warning."""
        for field in ("model", "quantisation", "prediction"):
            own, other = getattr(self.info, field), getattr(wanted, field)
            if own != other:
                raise BundleError(
                    f"the cache table is of {field} {own[:80]!r}, expected {other[:80]!r}",
                    code="cache-table-mismatch",
                    hint="calibrate this model; sensitivities change with its weights",
                    field=field,
                )
        for field in ("scheduler", "shift", "steps"):
            own, other = getattr(self.info, field), getattr(wanted, field)
            if own != other:
                notice(f"the cache table was calibrated with {field} {own}, this run has {other}")

    def to_bytes(self) -> bytes:
        """The file's content, the same for the same table."""
        meta = np.frombuffer(msgspec.json.encode(self.info), np.uint8)
        columns = {name: getattr(self, name) for name in (*COLUMNS, *EXTRAS)}  # float64 each
        file = io.BytesIO()
        given: dict[str, Any] = {name: c for name, c in columns.items() if c is not None}
        np.savez_compressed(file, meta=meta, **given)
        return file.getvalue()

    def save(self, path: Path) -> None:
        """Write the table; an old file stays until the new one is whole and reads back."""
        data = self.to_bytes()
        SensitivityTable.from_bytes(data)
        write_output(path, data)

    @classmethod
    def load(cls, path: Path) -> SensitivityTable:
        """Raises BundleError for a file that is damaged, too large or no table."""
        try:
            with open(path, "rb") as file:
                data = file.read(limits.CACHE_TABLE_BYTES + 1)
        except OSError as error:
            raise _bad(f"{path} could not be read: {error.strerror or error}") from error
        return cls.from_bytes(data)

    @classmethod
    def from_bytes(cls, data: bytes) -> SensitivityTable:
        """Raises BundleError for what is no table."""
        if len(data) > limits.CACHE_TABLE_BYTES:
            raise _bad(f"more than {limits.CACHE_TABLE_BYTES} bytes, expected a small file")
        members = _members(data)
        if missing := [name for name in (*COLUMNS, "meta") if name not in members]:
            raise _bad(f"there is no {missing[0]}.npy in it, expected one")
        values = parse_json(
            members.pop("meta").tobytes(), where="the cache table's metadata", code="cache-table"
        )
        try:
            info = _INFO.convert(values)
        except msgspec.ValidationError as error:
            raise _bad(f"its metadata is unsound: {error}") from None
        if info.version != VERSION:
            raise _bad(f"it has version {info.version}, expected {VERSION}")
        for policy, curve in info.thresholds.items():
            if not all(0 < share <= 1 and 0 < value < math.inf for share, value in curve):
                raise _bad(f"its thresholds of {policy[:40]!r} are {str(curve)[:80]}, expected "
                           "shares up to 1 and thresholds above 0")  # fmt: skip
        return cls(info=info, **members)


def _members(data: bytes) -> dict[str, Any]:
    """Arrays of the archive by name. Sizes are checked before anything is inflated."""
    allowed, found = {*COLUMNS, *EXTRAS, "meta"}, dict[str, Any]()
    room = limits.CACHE_TABLE_BYTES
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name not in allowed or name in found or not member.filename.endswith(".npy"):
                    raise _bad(f"it holds {member.filename[:80]!r} (again), expected each once")
                room -= member.file_size
                if room < 0:
                    raise _bad("it inflates to more than the limit")
                with archive.open(member) as file:
                    found[name] = _array(name, file.read(member.file_size + 1))
    except (
        zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError,
        NotImplementedError, RuntimeError,
    ) as error:  # fmt: skip
        raise _bad(f"no sound .npz: {str(error)[:200]}") from None
    return found


def _array(name: str, data: bytes) -> NDArray[Any]:
    """One `.npy` of version 1: float64 or bytes, little-endian, one-dimensional, complete."""
    size = int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10 : 10 + size]) if data.startswith(_MAGIC) else None
    dtype = np.dtype(np.uint8 if name == "meta" else "<f8")
    if header is None or header[1] != (b"|u1" if name == "meta" else b"<f8"):
        raise _bad(f"{name}.npy is no one-dimensional array of {dtype}, version 1")
    length, body = int(header[2]), data[10 + size :]
    if len(body) != length * dtype.itemsize:
        raise _bad(f"{name}.npy has {len(body)} bytes, expected {length * dtype.itemsize}")
    return np.frombuffer(body, dtype).copy()


def _check_column(name: str, column: F64, steps: int) -> None:
    if not 1 <= steps <= limits.CACHE_TABLE_STEPS:
        raise _bad(f"it has {steps} steps, expected from 1 to {limits.CACHE_TABLE_STEPS}")
    wanted = range(1, 10) if name == "polynomial" else range(steps, steps + 1)
    if column.dtype != np.float64 or column.ndim != 1 or len(column) not in wanted:
        raise _bad(
            f"{name} has shape {column.shape} of {column.dtype}, expected ({steps},) of float64"
        )
    if bad := int(np.count_nonzero(~np.isfinite(column))):
        raise _bad(f"{bad} of {len(column)} values of {name} are not finite")
    signed = name in ("polynomial", "t", "sigma")
    if (not signed and np.any(column < 0)) or (name == "gammas" and np.any(column <= 0)):
        raise _bad(f"{name} has values down to {column.min():g}, expected none below 0")


def _bad(why: str) -> BundleError:
    return BundleError(
        f"the cache table cannot be used: {why}",
        code="cache-table",
        hint="calibrate the model again",
    )
