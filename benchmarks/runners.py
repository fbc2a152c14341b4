"""edgert and llama.cpp behind one small interface, so that one loop times both.

A runner holds one sequence. `step` feeds tokens and comes back when their logits are there;
`trim` forgets everything past a length; `use` sets the number of threads.
"""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.bundle import Bundle
from edgert.machine.bench import bytes_per_token
from edgert.session import Feed, Session, SessionOptions, State, open_session

Ids = NDArray[np.int32]
Logits = NDArray[np.float32]


class Runner(ABC):
    """One program with one model and one sequence in it."""

    name: str

    @abstractmethod
    def use(self, threads: int) -> None:
        """Run with this many threads from now on."""

    @abstractmethod
    def step(self, tokens: Ids, *, every: bool = False) -> Logits:
        """Feed tokens; float32 [1, V], the last one's logits, or [n, V] with `every`."""

    @abstractmethod
    def trim(self, length: int) -> None:
        """Keep the first `length` tokens."""

    @abstractmethod
    def close(self) -> None:
        """Free everything."""


class SessionRunner(Runner):
    """An edgert session for each number of threads; the sequence moves along between them."""

    def __init__(
        self, bundle: Bundle, threads: Sequence[int], *, context: int, device: str = "cpu",
        name: str = "edgert", kv_bits: int = 0,
    ) -> None:  # fmt: skip
        self.name = name
        self.sessions: dict[int, Session] = {
            count: open_session(bundle, SessionOptions(device, count, context, kv_bits))
            for count in threads
        }
        self.states: dict[int, State] = {}
        self.current = threads[0]
        self.expected = context
        self.states[self.current] = self.session.new_state(context)

    @property
    def session(self) -> Session:
        return self.sessions[self.current]

    @property
    def state(self) -> State:
        return self.states[self.current]

    def use(self, threads: int) -> None:
        if threads == self.current:
            return
        old = self.states.pop(self.current)
        kept = old.snapshot()
        old.close()
        self.current = threads
        self.states[threads] = self.session.new_state(self.expected)
        self.state.restore(kept)

    def step(self, tokens: Ids, *, every: bool = False) -> Logits:
        session, state, found = self.session, self.state, []
        for at in range(0, len(tokens), session.max_rows):
            piece = tokens[at : at + session.max_rows]
            last = at + len(piece) == len(tokens)
            wanted = "all" if every else "last" if last else "none"
            found.append(session.step([Feed(state, piece, wanted)])[0].logits)
            state.commit(len(piece))
        return np.concatenate(found) if every else found[-1]

    def trim(self, length: int) -> None:
        self.state.rewind(length)

    def read_bytes(self) -> float:
        """Bytes of weights and cache that the next single token must read."""
        return bytes_per_token(self.session.graph, self.state)

    def close(self) -> None:
        for state in self.states.values():
            state.close()
        for session in self.sessions.values():
            session.close()


class LlamaRunner(Runner):
    """llama.cpp through llama-cpp-python's low-level interface: no sampling, no tokenizer."""

    name = "llama.cpp"

    def __init__(
        self, path: Path, threads: int, *, context: int, batch: int = 512, cache: str = "f16",
        flash: bool = True,
    ) -> None:  # fmt: skip
        """cache: type of keys and values, f16 or q8_0. flash: its attention may be flash
        attention, as by default."""
        import llama_cpp

        self.api = llama_cpp
        self.log = _captured_log()
        llama_cpp.llama_backend_init()
        asked = llama_cpp.llama_model_default_params()
        asked.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), asked)
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}:\n{''.join(self.log[-20:])}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = context, batch, batch
        params.n_threads = params.n_threads_batch = threads
        if not flash:
            params.flash_attn_type = 0
        if cache != "f16":
            params.type_k = params.type_v = getattr(llama_cpp, f"GGML_TYPE_{cache.upper()}")
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp makes no context:\n{''.join(self.log[-20:])}")
        vocabulary = llama_cpp.llama_model_get_vocab(self.model)
        self.width = llama_cpp.llama_vocab_n_tokens(vocabulary)
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.limit, self.length = batch, 0
        self.batch = llama_cpp.llama_batch_init(batch, 0, 1)

    def use(self, threads: int) -> None:
        self.api.llama_set_n_threads(self.context, threads, threads)

    def step(self, tokens: Ids, *, every: bool = False) -> Logits:
        found = []
        for at in range(0, len(tokens), self.limit):
            piece = tokens[at : at + self.limit]
            last = at + len(piece) == len(tokens)
            logits = self._decode(piece, len(piece) if every else int(last))
            found.append(logits.copy() if every else logits)  # the next batch reuses the buffer
        return np.concatenate(found) if every else found[-1]

    def rows(self, tokens: Ids) -> Logits:
        """Feed tokens of one batch; a view of all their logits, which the next step overwrites."""
        return self._decode(tokens, len(tokens))

    def _decode(self, tokens: Ids, rows: int) -> Logits:
        """Feed one batch; a view of the logits of its last `rows` tokens."""
        batch, count = self.batch, len(tokens)
        batch.n_tokens = count
        for i in range(count):
            batch.token[i] = int(tokens[i])
            batch.pos[i] = self.length + i
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = i >= count - rows
        status = self.api.llama_decode(self.context, batch)
        if status:
            raise SystemExit(f"llama_decode returned {status}:\n{''.join(self.log[-20:])}")
        self.length += count
        self.api.llama_synchronize(self.context)
        logits = self.api.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (max(rows, 1), self.width))[:rows]

    def trim(self, length: int) -> None:
        if not self.api.llama_memory_seq_rm(self.memory, 0, length, -1):
            raise SystemExit(f"llama.cpp does not trim to {length} tokens")
        self.length = length

    @property
    def nbytes(self) -> int:
        """Bytes of the sequence's keys and values."""
        return int(self.api.llama_state_seq_get_size(self.context, 0))

    def content(self) -> NDArray[np.uint8]:
        """The sequence's keys and values, as llama.cpp writes them."""
        held = np.empty(self.nbytes, np.uint8)
        size = self.api.llama_state_seq_get_data(self.context, _pointer(held), held.size, 0)
        if size != held.size:
            raise SystemExit(f"llama.cpp wrote {size} bytes of a sequence, expected {held.size}")
        return held

    def become(self, content: NDArray[np.uint8], length: int) -> None:
        """Hold the `length` tokens of such content."""
        if not self.api.llama_state_seq_set_data(self.context, _pointer(content), content.size, 0):
            raise SystemExit(f"llama.cpp does not read {length} tokens:\n{''.join(self.log[-20:])}")
        self.length = length

    def facts(self) -> dict[str, Any]:
        """Build flags, and what its log says about repacking, buffers and attention."""
        words = ("repack", "buffer size", "flash", "n_threads")
        lines = [" ".join(line.split()) for line in "".join(self.log).splitlines()]
        return {
            "system_info": self.api.llama_print_system_info().decode(),
            "log": sorted({line for line in lines if any(w in line.lower() for w in words)})[:16],
        }

    def close(self) -> None:
        self.api.llama_batch_free(self.batch)
        self.api.llama_free(self.context)
        self.api.llama_model_free(self.model)


def _pointer(array: NDArray[np.uint8]) -> Any:
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))


_LOG: list[str] = []
_CALLBACK: list[Any] = []  # llama.cpp keeps the pointer, so the object must live


def _captured_log() -> list[str]:
    """The list that llama.cpp's log goes to."""
    import llama_cpp

    if not _CALLBACK:

        @llama_cpp.llama_log_callback
        def keep(level: int, text: bytes, user: Any) -> None:
            _LOG.append(text.decode(errors="replace"))

        _CALLBACK.append(keep)
        llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    _LOG.clear()
    return _LOG
