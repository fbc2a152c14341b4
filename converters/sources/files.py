"""Files of a checkpoint's folder, read with suspicion: bounded, regular, strict JSON; and the
safetensors files that hold its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...errors import BundleError, ConvertError
from ...storage import strict_json
from ...storage.folder import check_name
from .checkpoint import Checkpoint, as_convert_error, unreadable

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def read_file(path: Path, limit: int) -> bytes | None:
    """A file's bytes, None where there is none. ConvertError for what is no file, is longer than
    `limit`, or cannot be read."""
    if not path.is_file():
        if os.path.lexists(path):  # leaving it out would change the model in silence
            raise ConvertError(
                f"{path} is a link that leads nowhere or no regular file, expected a file",
                code="checkpoint-file",
                hint="download it again, or remove it if the model needs none",
            )
        return None
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, limit))
    except OSError as error:
        raise unreadable(path, error) from None
    if size > limit:
        raise ConvertError(
            f"{path}: {size} bytes, the limit is {limit}",
            code="checkpoint-file",
            hint="the file is damaged, or is not what its name says",
        )
    return data


def json_object(data: bytes, path: Path) -> dict[str, Any]:
    """The JSON object of a file's bytes; ConvertError for anything else."""
    try:
        found = strict_json.parse(data, where=str(path), code="checkpoint-json", infinity=True)
    except BundleError as error:
        raise as_convert_error(error) from None
    if not isinstance(found, dict):
        raise ConvertError(
            f"{path} holds a JSON {type(found).__name__}, expected an object",
            code="checkpoint-json",
            hint="download the file again",
        )
    return found


def weight_map(index: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Tensor name -> file, of a shard index read from `path`."""
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(v, str) for v in placed.values()):
        raise ConvertError(
            f"{path}: weight_map is no map of tensor names to file names",
            code="checkpoint-index",
            hint="download the file again",
        )
    return placed


def shards(folder: Path, placed: Mapping[str, str], faults: list[str]) -> Iterator[Path]:
    """The files that a shard index names; what is no safetensors file beside it, or not there,
    goes into `faults`."""
    for name in sorted(set(placed.values())):
        try:
            check_name(name)
        except BundleError as error:
            raise as_convert_error(error) from None
        if "/" in name or not name.endswith(".safetensors"):
            faults.append(f"the shard index names {name!r}, expected a .safetensors file")
        elif not (folder / name).is_file():
            count = sum(1 for file in placed.values() if file == name)
            faults.append(f"shard {name!r} is missing, with {count} tensors")
        else:
            yield folder / name


def index_faults(folder: Path, placed: Mapping[str, str], checkpoint: Checkpoint) -> list[str]:
    """Faults between a shard index and its shards: tensors that are not where it says."""
    out = []
    for name, file in placed.items():
        found = checkpoint.tensors.get(name)
        if found is not None and found.shard.path.name != file:
            out.append(f"tensor {name!r} is in {found.shard.path.name}, the index says {file}")
        elif found is None and (folder / file).is_file():
            out.append(f"the shard index names {name!r} in {file}, which does not hold it")
    return out


def no_weights(folder: Path, single: str, index: str) -> ConvertError:
    """The error for a folder without safetensors files of the names that are read."""
    pickles = sorted(p.name for pattern in PICKLES for p in folder.glob(pattern))
    others = sorted(p.name for p in folder.glob("*.safetensors"))
    if pickles:
        return ConvertError(
            f"{folder} holds weights only as {pickles[:8]}, expected {single} or {index}",
            code="pickle",
            hint="such files can run code when they are read, so edgert does not open them, "
            "and no flag makes it; take the model's safetensors version, or, where you trust "
            "the file, write one: model.save_pretrained(..., safe_serialization=True)",
        )
    return ConvertError(
        f"{folder} holds {others[:8] or 'no weights'}, expected {single}, or {index} and "
        "the shards it lists",
        code="checkpoint-weights",
        hint="download the whole checkpoint; where it has no safetensors at all, write them: "
        "model.save_pretrained(...)",
    )
