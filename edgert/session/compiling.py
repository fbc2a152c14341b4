"""Kernels of a program as addresses, compiled where no library of them came along."""

from __future__ import annotations

import logging
from pathlib import Path

from ..kernels.cpu import code as machine_code
from ..notices import NOTICE, logger, notice
from ..process import give_back_code, give_back_heap
from ..storage.cachedir import VARIABLE, writable


def compiled(names: list[str]) -> dict[str, int]:
    """Entry addresses of kernels, with a line on stderr while something has to be compiled, and a
    progress bar where a person looks at it."""
    missing = [name for name in names if not machine_code.is_ready(name)]
    if missing:
        from tqdm import tqdm

        _say_compiling(len(missing), machine_code.cache_folder())
        for name in tqdm(missing, unit="kernel", leave=False, disable=None):
            logger.debug("compiling %s", name)
            machine_code.address(name)
    entries = {name: machine_code.address(name) for name in names}
    give_back_heap()
    if machine_code.shipped() is None:
        give_back_code("libllvmlite")
    return entries


def _say_compiling(count: int, folder: Path | None) -> None:
    """One line; `kernel_cache` has said so where there is no folder at all."""
    if folder is None:
        return
    kept = writable(folder)
    hint = "" if kept else f"; {folder} cannot be written, set {VARIABLE} to a folder that can"
    notice(
        f"compiling {count} kernels for this CPU, {'once' if kept else 'at every start'} "
        f"(some seconds) ...{hint}",
        NOTICE if kept else logging.WARNING,
    )
