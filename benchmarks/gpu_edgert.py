"""edgert's half of `gpu_peers`: is it right, where do its nodes run, how fast is it."""

from __future__ import annotations

import platform
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgert.bundle import Bundle
from edgert.errors import EdgertError
from edgert.machine.bench import bytes_per_token
from edgert.roles import vocab_size
from edgert.session import SessionOptions, open_session
from edgert.session.base import Feed, Session
from edgert.session.ort import OrtSession
from edgert.session.providers import placement

LOGITS_APART = 0.1
PROMPT, PREFILL, DECODE, CHECK, REPEATS = 128, 512, 128, 64, 5
KEPT = 1 << 20  # logits kept of a golden answer

Ids = NDArray[np.int32]


@dataclass
class Golden:
    """The CPU session's greedy answer: tokens [n] after `prompt`, and the logits [n, V] (float16)
    that each was chosen from."""

    prompt: Ids
    tokens: Ids
    logits: NDArray[np.float16]

    @staticmethod
    def make(bundle: Bundle) -> Golden:
        """Ask the CPU session."""
        golden = bundle.manifest.golden
        vocabulary = vocab_size(bundle.graph())
        drawn = np.random.default_rng(0).integers(3, vocabulary, 16)
        ids = np.array(golden[0].prompt_ids if golden else drawn, np.int32)
        session = open_session(bundle, SessionOptions(device="cpu"))
        tokens, logits = greedy(session, ids, min(CHECK, KEPT // vocabulary))
        session.close()
        return Golden(ids, tokens, logits.astype(np.float16))

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, **vars(self))

    @staticmethod
    def load(path: Path) -> Golden:
        with np.load(path) as file:
            return Golden(*(file[name] for name in ("prompt", "tokens", "logits")))


def golden_of(bundle: Bundle, name: str, folder: Path | None) -> Golden:
    """The answer kept in `folder` (for machines without a CPU session), else a fresh one. An answer
    of other weights does no harm: its logits are far from the session's."""
    path = folder / f"{name}.npz" if folder else None
    if path is not None and path.exists():
        return Golden.load(path)
    golden = Golden.make(bundle)
    if path is not None:
        golden.save(path)
    return golden


def greedy(session: Session, ids: Ids, count: int) -> tuple[Ids, NDArray[np.float32]]:
    """Greedy tokens after a prompt, and the logits they were chosen from."""
    state = session.new_state(len(ids) + count)
    feed, tokens, kept = ids, [], []
    for _ in range(count):
        kept.append(session.step([Feed(state, feed)])[0].logits[-1])
        state.commit(len(feed))
        tokens.append(int(np.argmax(kept[-1])))
        feed = np.array(tokens[-1:], np.int32)
    state.close()
    return np.array(tokens, np.int32), np.stack(kept)


def agreement(session: Session, golden: Golden) -> str:
    """How long the session's greedy tokens equal the CPU session's; EdgertError when they part
    although the best two were further apart than the logits, or when those are another model's."""
    count = len(golden.tokens)
    found, logits = greedy(session, golden.prompt, count)
    differing = np.nonzero(found != golden.tokens)[0]
    same = int(differing[0]) if len(differing) else count
    a, b = (kept[: same + 1].astype(np.float64) for kept in (golden.logits, logits))
    apart = float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean()))
    if not apart <= LOGITS_APART:
        raise EdgertError(f"logits differ by {apart:.3f} relative RMS, the limit is {LOGITS_APART}")
    note = f"{same} of {count} tokens as on the CPU, logits {apart:.4f} apart"
    if same == count:
        return note
    gap = float(np.diff(np.sort(a[same])[-2:])[0])
    difference = float(np.abs(a - b).max())
    if gap > difference:
        raise EdgertError(
            f"token {same} differs: top-2 gap {gap:.4f}, logits differ by {difference:.4f}"
        )
    return f"{note}; then a top-2 gap of {gap:.4f} below a difference of {difference:.4f}"


def nodes(session: Session) -> str:
    """How many nodes each provider runs."""
    assert isinstance(session, OrtSession)
    counts = Counter(node.provider for node in placement(session.model.runtime))
    return ", ".join(f"{count} nodes on {name}" for name, count in counts.most_common())


def read_bytes(session: Session, length: int) -> float:
    """Bytes of weights and cache that a token after `length` others must read."""
    state = session.new_state()
    weights = bytes_per_token(session.graph, state)
    state.close()
    assert isinstance(session, OrtSession)
    shapes = (memory.past.shape for memory in session.model.memories)  # [B, heads, P, width]
    width = sum(int(shape[1]) * int(shape[3]) for shape in shapes)
    return weights + width * length * (2 if session.variant.half else 4)


def prompt(session: Session, count: int) -> Ids:
    rng = np.random.default_rng(0)
    return rng.integers(3, session.vocab_size, count).astype(np.int32)


def speeds(session: Session) -> dict[str, float]:
    """decode_tps and prefill_tps; decoding is greedy, the best token found on the host."""
    state = session.new_state(PROMPT + DECODE)
    session.step([Feed(state, prompt(session, PROMPT))])
    state.commit(PROMPT)
    token, seconds = prompt(session, 1), []
    for _ in range(DECODE):
        start = time.perf_counter()
        token = session.step([Feed(state, token)])[0].logits.argmax(axis=1).astype(np.int32)
        state.commit(1)
        seconds.append(time.perf_counter() - start)
    state.close()
    decode = 1 / statistics.median(seconds[DECODE // 4 :])  # the first ones capture graphs
    long = min(PREFILL, session.context - 1, session.max_rows)
    ids, fresh = prompt(session, long), session.new_state(long)

    def prefill() -> None:
        session.step([Feed(fresh, ids)])
        fresh.commit(0)

    found = {"decode_tps": decode, "prefill_tps": long / timed(prefill)}
    fresh.close()
    return found


def timed(work: Callable[[], Any], done: Callable[[], Any] = lambda: None) -> float:
    """Median seconds of a call, after one that does not count."""
    found = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        done()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def machine(device: str) -> dict[str, Any]:
    """What a run ran on: device, date, the GPU by its name and driver, versions."""
    names = ("onnxruntime-gpu", "onnxruntime", "torch", "transformers")
    found: dict[str, Any] = {"device": device, "date": date.today().isoformat()}
    if device == "cuda":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        with suppress(OSError, subprocess.TimeoutExpired):
            said = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)
            found["gpu"] = said.stdout.strip()
    found["versions"] = {"python": platform.python_version()}
    for name in names:
        with suppress(PackageNotFoundError):
            found["versions"][name] = version(name)
    return found


def copy_bandwidth() -> float:
    """Bytes read and written a second by copies of 1 GiB on the GPU, in 10^9."""
    import torch

    speed = _copies(1 << 30)
    torch.cuda.empty_cache()
    return speed


def _copies(size: int) -> float:
    import torch

    source = torch.empty(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * size / timed(lambda: target.copy_(source), torch.cuda.synchronize) / 1e9
