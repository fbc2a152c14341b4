"""LoRA adapters merged into a checkpoint's tensors, as these are read by rows.

An adapter (`edgert.bundle.peft`) changes tensors by the names that the checkpoint has for them, so
whatever a family makes of a tensor afterwards (stacked, in another order, times a factor) it makes
of the changed one. A tied table that an adapter changes in one of its two uses is stored twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...bundle.peft import Adapter, LowRank, names_in_checkpoint
from ...errors import BundleError, ConvertError
from ..families.recipe import F32
from .base import SourceTensor

Tensors = dict[str, SourceTensor]


class Changed:
    """A matrix [N, K] plus what an adapter adds; `turned` where it is stored as [K, N]."""

    dtype = "F32"

    def __init__(self, base: SourceTensor, change: LowRank, *, turned: bool) -> None:
        self.base, self.change, self.turned, self.shape = base, change, turned, base.shape

    def rows(self, start: int, stop: int) -> F32:
        change, rows = self.change, self.base.rows(start, stop)
        if self.turned:
            return rows + np.float32(change.scale) * (change.a[:, start:stop].T @ change.b.T)
        found = rows + np.float32(change.scale) * (change.b[start:stop] @ change.a)
        if change.lengths is not None:
            own = change.lengths[start:stop, None]
            found *= own / np.linalg.norm(found, axis=1, keepdims=True)
        return found


class Replaced:
    """A tensor that an adapter holds whole."""

    dtype = "F32"

    def __init__(self, adapter: Adapter, stored: str) -> None:
        self.adapter, self.stored = adapter, stored
        self.shape = adapter.file.info(stored).shape

    def rows(self, start: int, stop: int) -> F32:
        return self.adapter.values(self.stored, start, stop)


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
                out[found] = Changed(out[found], change, turned=turned)


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
