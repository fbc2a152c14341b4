"""LoRA adapters merged into a checkpoint's tensors, as these are read by rows.

An adapter (`edgert.bundle.peft`) changes tensors by the names that the checkpoint has for them, so
whatever a family makes of a tensor afterwards (stacked, in another order, times a factor) it makes
of the changed one. A tied table that an adapter changes in one of its two uses is stored twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...bundle.peft import DIVERGED, Adapter, LowRank, names_in_checkpoint
from ...errors import BundleError, ConvertError
from ..families.recipe import F32
from .base import SourceTensor

Tensors = dict[str, SourceTensor]


LARGEST = 65504.0  # of float16, which calibration and scales have


class Changed:
    """A matrix [N, K] plus what a module of an adapter adds; `turned` where it is stored as [K, N].

    Values that are no numbers, or beyond LARGEST, raise ConvertError where the adapter made them.
    """

    dtype = "F32"

    def __init__(
        self, base: SourceTensor, adapter: Adapter, module: str, change: LowRank, *, turned: bool
    ) -> None:
        self.base, self.change, self.turned, self.shape = base, change, turned, base.shape
        self.adapter, self.module = adapter, module

    def rows(self, start: int, stop: int) -> F32:
        rows = self.base.rows(start, stop)
        with np.errstate(all="ignore"):  # what comes of it is looked at
            found = self._sum(rows, start, stop)
        if not _largest(found) <= LARGEST and _largest(rows) <= LARGEST:
            raise _too_large(self.adapter, f"module {self.module!r}", found)
        return found

    def _sum(self, rows: F32, start: int, stop: int) -> F32:
        change = self.change
        if self.turned:
            return rows + np.float32(change.scale) * (change.a[:, start:stop].T @ change.b.T)
        found = rows + np.float32(change.scale) * (change.b[start:stop] @ change.a)
        if change.lengths is not None:
            size = np.linalg.norm(found, axis=1, keepdims=True)
            size[~np.isfinite(size)] = np.nan  # else its row would be zeros
            found *= change.lengths[start:stop, None] / size
        return found


class Replaced:
    """A tensor that an adapter holds whole."""

    dtype = "F32"

    def __init__(self, adapter: Adapter, stored: str) -> None:
        self.adapter, self.stored = adapter, stored
        self.shape = adapter.file.info(stored).shape

    def rows(self, start: int, stop: int) -> F32:
        found = self.adapter.values(self.stored, start, stop)
        if _largest(found) > LARGEST:
            raise _too_large(self.adapter, f"tensor {self.stored!r}", found)
        return found


def _largest(rows: F32) -> float:
    return float(np.abs(rows).max(initial=0.0))


def _too_large(adapter: Adapter, what: str, found: F32) -> ConvertError:
    return ConvertError(
        f"adapter {adapter.path}: {what} makes weights of up to {_largest(found):.3g}, expected "
        f"finite ones of at most {LARGEST:g}",
        code="adapter-values",
        hint=DIVERGED,
        adapter=adapter.path,
        what=what,
    )


def opened_adapters(paths: Sequence[object]) -> list[Adapter]:
    """The adapters of these folders; ConvertError for what is none."""
    found: list[Adapter] = []
    try:
        for path in paths:
            found.append(Adapter(str(path)))
    except BundleError as error:
        for adapter in found:
            adapter.close()
        raise ConvertError(error.message, code=error.code, hint=error.hint) from None
    return found


def merged(
    adapters: Sequence[Adapter], tensors: Mapping[str, SourceTensor], tied: Mapping[str, str],
    faults: list[str],
) -> Tensors:  # fmt: skip
    """The tensors as the adapters change them, one after the other. tied: names of copies that the
    model may do without, by which table they share; what does not fit goes into `faults`."""
    out = dict(tensors)
    for adapter in adapters:
        _merge(adapter, out, tied, faults)
    return out


def _merge(adapter: Adapter, out: Tensors, tied: Mapping[str, str], faults: list[str]) -> None:
    for copy, table in tied.items():
        if {copy, table} & _touched(adapter, {*out, copy, table}):
            one = out.get(copy, out.get(table))
            if one is not None:
                out.setdefault(copy, one)
                out.setdefault(table, one)
    for name, stored in adapter.replaced.items():
        found = _named(name, out)
        if found and out[found].shape == adapter.file.info(stored).shape:
            out[found] = Replaced(adapter, stored)
        else:
            faults.append(_misfit(adapter, name, adapter.file.info(stored).shape, out.get(found)))
    for products, turned in ((adapter.products, adapter.transposed), (adapter.tables, True)):
        for module, change in products.items():
            found = _named(f"{module}.weight", out)
            shape = change.shape[::-1] if turned else change.shape
            if not found or out[found].shape != shape:
                faults.append(_misfit(adapter, f"{module}.weight", shape, out.get(found)))
            elif turned and change.lengths is not None:
                faults.append(f"adapter {adapter.name!r} uses DoRA on transposed {module!r}")
            else:
                out[found] = Changed(out[found], adapter, module, change, turned=turned)


def _touched(adapter: Adapter, names: set[str]) -> set[str]:
    """The tensors among `names` that an adapter changes."""
    modules = (*adapter.products, *adapter.tables)
    changed = {*adapter.replaced, *(f"{module}.weight" for module in modules)}
    return {_named(name, names) for name in changed}


def _named(name: str, tensors: Mapping[str, object] | set[str]) -> str:
    """What the checkpoint calls a tensor of the model; "" where it has none."""
    return next((other for other in names_in_checkpoint(name) if other in tensors), "")


def _misfit(adapter: Adapter, name: str, shape: tuple[int, ...], found: SourceTensor | None) -> str:
    where = "the checkpoint has none" if found is None else f"the checkpoint's is {found.shape}"
    return f"adapter {adapter.name!r} changes {name!r} {list(shape)}, {where}"
