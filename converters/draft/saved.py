"""A trained head as files: `head.safetensors`, float32, and `head.json`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ...errors import BundleError, ConvertError
from ...storage.typed import Reader
from .options import TrainedHead
from .shape import HeadShape, head_graph

FILES = ("head.safetensors", "head.json")


class _Told(msgspec.Struct, forbid_unknown_fields=True):
    """What `head.json` holds."""

    shape: HeadShape
    ids: list[int]
    told: dict[str, Any]


_READER = Reader(_Told)


def save_head(head: TrainedHead, folder: Path) -> None:
    """Write both files; the second one last, so that a folder with it is whole."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: np.ascontiguousarray(array) for name, array in head.weights.items()}
    save_file(tensors, folder / FILES[0])
    told = {"shape": asdict(head.shape), "ids": head.ids.tolist(), "told": dict(head.told)}
    aside = folder / f"{FILES[1]}.new"
    aside.write_text(json.dumps(told, indent=1), "utf-8")
    os.replace(aside, folder / FILES[1])


def load_head(folder: Path) -> TrainedHead:
    """Read them. Raises ConvertError for files that are missing, damaged or do not fit."""
    from safetensors.numpy import load_file

    try:
        found = _READER.decode((folder / FILES[1]).read_bytes())
        weights = dict(load_file(folder / FILES[0]))
    except (OSError, ValueError, RuntimeError) as error:
        raise _bad(folder, f"cannot be read: {error}") from None
    except Exception as error:  # safetensors' own
        raise _bad(folder, f"is damaged: {error}") from None
    graph = head_graph(found.shape)
    try:
        graph.shapes()
    except BundleError as error:
        raise _bad(folder, f"has sizes that make no graph: {error.message}") from None
    wanted = {name: (weight.shape, np.dtype("f4")) for name, weight in graph.weights.items()}
    if {name: (array.shape, array.dtype) for name, array in weights.items()} != wanted:
        raise _bad(folder, "holds other tensors than its sizes say")
    ids = np.asarray(found.ids, np.int64)
    if len(ids) != found.shape.vocabulary or ids[0] < 0 or (np.diff(ids) < 1).any():
        raise _bad(folder, f"has {len(ids)} ids, expected {found.shape.vocabulary} rising ones")
    return TrainedHead(found.shape, weights, ids.astype(np.int32), found.told)


def _bad(folder: Path, fault: str) -> ConvertError:
    return ConvertError(
        f"the draft head in {folder} {fault}",
        code="draft-saved",
        hint=f"expected {' and '.join(FILES)} as training writes them",
    )
