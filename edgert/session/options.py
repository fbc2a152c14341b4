"""How a session is opened: one set of options for `edgert.load`, the command line and the tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import limits
from ..errors import DeviceError, RequestError
from ..graph import Graph


@dataclass(frozen=True)
class SessionOptions:
    """device: "cpu", "reference", "auto" (CUDA where it can be used, else "cpu"), or an execution
    provider of onnxruntime with options after a colon, as `providers.parse_device` reads them.
    threads: None means one per performance core. ctx_size: tokens a state may hold, None means what
    the model was made for. kv_bits: 32, 16, 8 or 4; 0: the model decides. kv_memory: bytes that the
    keys and values of all sequences may take (cpu); None means half of what is free, at most. A
    context that does not fit is shortened, with a notice. prompt_cache: folder of known beginnings
    of texts (cpu), for later processes. prompt_cache_size: bytes that its files may take, None
    means `limits.PROMPT_CACHE_BYTES`.
    snapshot_bits: 32, or 16 for beginnings and checkpoints of recurrent states whose matrices are
    kept as bfloat16 (cpu): half the memory, and a text that goes on from one is no longer that of
    the whole text, bit for bit.

    Raises RequestError for values that no model takes; what depends on the model or the device is
    checked when the session is opened.
    """

    device: str = "cpu"
    threads: int | None = None
    ctx_size: int | None = None
    kv_bits: int = 0
    kv_memory: int | None = None
    prompt_cache: Path | None = None
    prompt_cache_size: int | None = None
    snapshot_bits: int = 32

    def __post_init__(self) -> None:
        if not isinstance(self.device, str):
            raise type_error("device", self.device, "a name such as 'cpu'")
        counts = ("threads", "ctx_size", "kv_bits", "kv_memory", "prompt_cache_size")
        for name in (*counts, "snapshot_bits"):
            value = getattr(self, name)
            whole = hasattr(value, "__index__") and not isinstance(value, bool)
            if value is not None and not whole:
                raise type_error(name, value, "a whole number")
        if self.ctx_size is not None and not 1 <= self.ctx_size <= limits.CONTEXT_TOKENS:
            raise RequestError(
                f"ctx_size is {self.ctx_size}, expected 1 to {limits.CONTEXT_TOKENS}",
                code="parameter-range",
                hint="leave it out for all that the model takes",
                field="ctx_size",
            )
        if self.snapshot_bits not in (16, 32):
            raise RequestError(
                f"snapshot_bits is {self.snapshot_bits}, expected 16 or 32",
                code="parameter-range",
                field="snapshot_bits",
            )
        if self.kv_memory is not None and self.kv_memory < 1:
            raise RequestError(
                f"kv_memory is {self.kv_memory} bytes, expected 1 or more",
                code="parameter-range",
                hint="leave it out for half of the memory that is free",
                field="kv_memory",
            )
        self._check_prompt_cache()

    def _check_prompt_cache(self) -> None:
        folder, size = self.prompt_cache, self.prompt_cache_size
        if folder is not None:
            if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
                raise type_error("prompt_cache", folder, "the path of a folder, or None")
            object.__setattr__(self, "prompt_cache", Path(os.path.abspath(folder)))
        if size is not None and (folder is None or size < 1):
            raise RequestError(
                f"prompt_cache_size is {size} bytes, expected "
                + ("a folder prompt_cache with it" if folder is None else "1 or more"),
                code="parameter-range",
                hint=f"leave it out for {limits.PROMPT_CACHE_BYTES >> 30} GiB",
                field="prompt_cache_size",
            )

    def context(self, graph: Graph) -> int:
        """Tokens that a state of this graph may hold; DeviceError for more than the model takes."""
        if self.ctx_size is not None and self.ctx_size > graph.context:
            raise DeviceError(
                f"ctx_size is {self.ctx_size}, this model takes 1 to {graph.context} tokens",
                code="ctx-size",
                hint="leave it out for all that the model takes",
            )
        return self.ctx_size or graph.context

    def require_kv_bits(self, allowed: Sequence[int], why: str) -> None:
        """DeviceError, giving the reason `why`, for kv_bits that the device cannot offer."""
        if self.kv_bits not in allowed:
            raise DeviceError(
                f"kv_bits is {self.kv_bits}, {why}, expected {' or '.join(map(str, allowed))}",
                code="kv-bits",
                hint="leave it out, or use the cpu device",
            )


def type_error(name: str, value: object, expected: str) -> RequestError:
    """The error for an argument of `edgert.load` that is of a wrong type."""
    return RequestError(
        f"{name} is {value!r}, expected {expected}",
        code="parameter-type",
        hint="help(edgert.load) says what each one means",
        field=name,
    )
