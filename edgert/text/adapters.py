"""Adapters by path: opened and attached to a model's session when a request first names them."""

from __future__ import annotations

import os
import threading
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import RequestError
from ..session.base import Session, State

if TYPE_CHECKING:
    from ..bundle.reader import Bundle

AdapterPath = str | PathLike[str]
_Known = tuple[str, tuple[tuple[int, int, int], ...]]


class Adapters:
    """The adapters of one model. bundle: what tells which tensors its matrices are made of."""

    def __init__(self, session: Session, bundle: Bundle | None) -> None:
        self._session, self._bundle = session, bundle
        self._known: dict[_Known, str] = {}
        self._lock = threading.Lock()

    def key(self, adapter: AdapterPath | None) -> str:
        """The key of an adapter's folder, "" for none. Raises RequestError for what is no path and
        for adapters of other models, BundleError for damaged ones, DeviceError."""
        if adapter is None:
            return ""
        if not isinstance(adapter, str | PathLike) or not os.fspath(adapter):
            raise RequestError(
                f"adapter is {adapter!r}, expected the folder of a LoRA adapter, or None",
                code="parameter-type",
                hint="give a folder that PEFT's save_pretrained wrote",
                field="adapter",
            )
        known = _known(Path(adapter))
        with self._lock:
            if known not in self._known:
                self._known[known] = self._attached(Path(adapter))
            return self._known[known]

    def _attached(self, path: Path) -> str:
        from ..bundle.origins import read_origins
        from ..bundle.peft import Adapter
        from ..session.adapters import fit

        if self._bundle is None:
            raise RequestError(
                f"adapter {str(path)!r} for a model that was made by hand, expected a bundle's",
                code="adapter-origins",
                hint="open the model with edgert.load",
            )
        opened = Adapter(path)
        try:
            origins = read_origins(self._bundle)
            fitted = fit(opened, self._session.graph, origins)
        finally:
            opened.close()
        self._session.attach(fitted)
        return fitted.key

    def begin(self, tokens: int, key: str) -> State:
        """A new state for a text of so many tokens, with an adapter."""
        state = self._session.new_state(tokens)
        if key:
            self._session.choose(state, key)
        return state


def _known(path: Path) -> _Known:
    """What tells that a folder's content is what it was."""
    from ..bundle.peft import CONFIG, WEIGHTS

    try:
        found = [os.stat(path / name) for name in (CONFIG, WEIGHTS)]
    except OSError:
        return os.path.abspath(path), ()
    return os.path.abspath(path), tuple((s.st_ino, s.st_size, s.st_mtime_ns) for s in found)
