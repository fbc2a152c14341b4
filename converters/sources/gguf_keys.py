"""What a row of GGUF's architectures says, and how it reads the keys of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import limits
from ...storage.gguf_values import Metadata

Config = dict[str, Any]
F32 = NDArray[np.float32]


class Change(NamedTuple):
    """How a tensor differs from the family's, beside its name: the family's shape, from that of the
    file; its values, from those of the file, one by one; and which row of the file each of its rows
    is, from the config and the number of rows, None where they do not fit each other."""

    shape: Callable[[tuple[int, ...]], tuple[int, ...]] | None = None
    values: Callable[[F32], F32] | None = None
    order: Callable[[Mapping[str, Any], int], NDArray[np.int64] | None] | None = None

    def order_of(self, config: Mapping[str, Any], count: int) -> NDArray[np.int64] | None:
        """The order of so many rows; None where it is the file's."""
        return self.order(config, count) if self.order else None


@dataclass(frozen=True)
class Architecture:
    """How one is read. model_type: of the family. own: names of tensors of a layer, beside LAYER,
    by their role, or whole ones by role and end (`ssm_dt.bias`, `ssm_a.` without one).
    more: adds keys of the family, from metadata. keys: that `more` reads. sizes: of READ those that
    `more` reads in place of what is read of every file. interleaved: whether rows of q and k stand
    in pairs, as llama.cpp turns them. shifted: whether norms have their 1 added. experts: what the
    family calls the module of stacked experts, "" without. whole: names of tensors outside of
    layers, beside WHOLE. changes: by the name of a tensor, those of a layer by their role and end
    (`ssm_a`, `ssm_conv1d.weight`). prefix: of the family's layers. split: modules of the family
    whose rows the file has in several tensors of equal shape, by the names of these.
    """

    model_type: str
    more: Callable[[Keys, Config], None] = lambda keys, config: None
    keys: frozenset[str] = frozenset()
    own: Mapping[str, str] = field(default_factory=dict)
    interleaved: bool = False
    shifted: bool = False
    experts: str = ""
    whole: Mapping[str, str] = field(default_factory=dict)
    changes: Mapping[str, Change] = field(default_factory=dict)
    prefix: str = "model.layers"
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sizes: frozenset[str] = frozenset()


class Keys:
    """The keys of one architecture. shapes: of the file's tensors, by GGUF's names."""

    def __init__(
        self,
        meta: Metadata,
        name: str,
        faults: list[str],
        shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
    ) -> None:
        self.meta, self.name, self.faults, self.shapes = meta, name, faults, shapes

    def has(self, tensor: str) -> bool:
        """Whether some layer has a tensor, by its role and end."""
        return any(name.startswith("blk.") and name.endswith(f".{tensor}") for name in self.shapes)

    def whole(self, key: str, *, zeros: bool = False) -> int | None:
        """A whole number; where a file has one for each layer, they must be equal, but for zeros
        where some layers may have none."""
        full = f"{self.name}.{key}"
        if self.meta.is_array(full):
            each = self.meta.numbers(full)
            if zeros and each is not None and each.any():
                each = each[each != 0]
            if each is None or not each.size or each.dtype.kind not in "iu" or np.ptp(each):
                self.faults.append(f"key {full!r} differs between layers, expected one number")
                return None
            if each[0] < 0:
                self.faults.append(f"key {full!r} is {each[0]}, expected a whole number from 0")
                return None
            return int(each[0])
        return self.meta.whole(full)

    def each(self, key: str) -> list[float] | None:
        """A number or truth value of each layer."""
        found = self.meta.numbers(f"{self.name}.{key}")
        if found is None or found.size > limits.LAYERS:
            return None if found is None else [math.nan]  # which no layer has
        return [float(value) for value in found]

    def number(self, key: str) -> float | None:
        """A number, without the digits that float32 added to it."""
        value = self.meta.number(f"{self.name}.{key}")
        return None if value is None else float(f"{value:.7g}")

    def text(self, key: str) -> str | None:
        return self.meta.text(f"{self.name}.{key}")

    def flag(self, key: str) -> bool | None:
        return self.meta.flag(f"{self.name}.{key}")


def window(keys: Keys, config: Config) -> None:
    """The window of attention, none where it is not told."""
    config["sliding_window"] = keys.whole("attention.sliding_window") or None
