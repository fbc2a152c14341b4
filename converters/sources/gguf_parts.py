"""The files of a GGUF model: one, or all parts of a split one."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ... import limits
from ...errors import BundleError, ConvertError
from .checkpoint import as_convert_error
from .gguf_tensors import GgufFile

SPLIT = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def files_of(path: Path) -> list[GgufFile]:
    """All files of a model, in order. Raises ConvertError where parts are missing or differ."""
    files = [GgufFile(path)]
    try:
        count = files[0].metadata.whole("split.count") or 1
        if count == 1:
            return files
        part = SPLIT.fullmatch(path.name)
        if part is None or int(part[3]) != count or not 1 < count <= limits.GGUF_SPLITS:
            raise _fault(path, f"is one of {count} parts", f"a name -0000N-of-{count:05}.gguf")
        names = [path.with_name(f"{part[1]}-{i:05}-of-{count:05}{path.suffix}")
                 for i in range(1, count + 1)]  # fmt: skip
        missing = [name.name for name in names if not os.path.isfile(name)]
        if missing:
            raise _fault(path, f"is one of {count} parts", f"{missing[:4]} beside it")
        files[0].close()
        files = []
        for index, name in enumerate(names):
            files.append(GgufFile(name))
            found = files[-1].metadata
            if (found.whole("split.no"), found.whole("split.count")) != (index, count):
                raise _fault(
                    name, f"is part {found.shown('split.no')} of {found.shown('split.count')}",
                    f"part {index} of {count}",
                )  # fmt: skip
        return files
    except BaseException as error:
        for file in files:
            file.close()
        if isinstance(error, BundleError):
            raise as_convert_error(error) from None
        raise


def _fault(path: Path, found: str, expected: str) -> ConvertError:
    return ConvertError(
        f"{path} {found}, expected {expected}",
        code="gguf-split",
        hint="download all parts of the model into one folder, under their names",
    )
