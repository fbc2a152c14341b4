"""Memory of one sequence on the CPU: pages of keys and values, and a slot of recurrent states."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import RequestError, ResourceError
from .base import State
from .memory import is_whole
from .pages import PAGE_TOKENS, PagePool, pages_for
from .slots import SlotContent, SlotPool, content_bytes


class Checkpoint(NamedTuple):
    """What the slot held when the sequence had `length` tokens."""

    length: int
    content: SlotContent
    nbytes: int


class CpuState(State):
    """One sequence's pages and slot. A state that borrows has nothing of its own here.

    table: int32, the page of every 64 tokens, which is what kernels read; it stays where it is.
    slot: index into the slots of `slots`, -1 while the sequence is empty or the graph has none.
    Pages and slot go back to their pools at `close`, or when the state is dropped without one.
    """

    def __init__(
        self, pool: PagePool, slots: SlotPool, context: int, fingerprint: str, *, long_rope: bool
    ) -> None:
        super().__init__(context)
        self.pool, self.slots = pool, slots
        self.fingerprint, self.long_rope = fingerprint, long_rope
        self.pages: list[int] = []  # these two are changed in place only: finalizers hold them
        self._slot: list[int] = []
        weakref.finalize(self, pool.give, self.pages).atexit = False
        weakref.finalize(self, slots.give, self._slot).atexit = False
        self.table = np.zeros(pages_for(context), np.int32)
        self.table_address = self.table.ctypes.data
        self.checkpoints: tuple[Checkpoint, ...] = ()
        self.closed = self.stepping = False

    @property
    def slot(self) -> int:
        return self._slot[0] if self._slot else -1

    # --- room -------------------------------------------------------------------------------

    def reserve(self, tokens: int) -> None:
        """Have room to write the tokens from `length` to the first `tokens`, in pages and a slot
        that nobody shares. Raises ResourceError and takes nothing where a pool has too little."""
        self._check_open()
        rows = tokens - self.length
        if tokens > self.context or (self.slots and rows > self.slots.rows):
            raise RequestError(
                f"room for {rows} tokens behind {self.length}, expected at most "
                f"{self.slots.rows if self.slots else self.context} at once and {self.context} "
                "in all",
                code="context",
            )
        if rows <= 0:
            return
        slot = self._take_slot()
        try:
            self._take_pages(tokens)
        except ResourceError:
            self.slots.give(slot)
            raise
        self._slot += slot
        if self._slot:
            self.slots.make_room(self.slot, self.length, rows)

    def _take_slot(self) -> list[int]:
        """A new slot where the sequence needs one and has none."""
        return [self.slots.take()] if self.slots and not self._slot else []

    def _take_pages(self, tokens: int) -> None:
        held, wanted = len(self.pages), self.pool.count(tokens)
        fresh = self.pool.take(wanted - held) if wanted > held else []
        first = self.length // PAGE_TOKENS  # the page of the next token: partly filled or new
        try:
            if first < held:
                self.pages[first] = self.table[first] = self.pool.writable(self.pages[first])
        except ResourceError:
            self.pool.give(fresh)
            raise
        self.pages += fresh
        if fresh:
            self.table[held:wanted] = fresh

    def _shrink(self) -> None:
        count = self.pool.count(self.length + self.held)
        if count < len(self.pages):
            given, self.pages[count:] = self.pages[count:], []
            self.pool.give(given)
        if self.length + self.held == 0:
            self.checkpoints = ()
            given, self._slot[:] = self._slot[:], []
            self.slots.give(given)

    def _check_open(self) -> None:
        if self.closed:
            raise RequestError("this state is closed", code="state-closed")

    # --- committing and going back ------------------------------------------------------------

    def _keep(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        count = len(rows)
        late = self.partly(rows) and self.offered is not None
        if self.slots.whole_steps and count != self.pending and not late:
            raise RequestError(
                f"commit of {count} of {self.pending} tokens to a recurrent state without a tail, "
                "expected all or none",
                code="commit-recurrent",
                hint="discard, then feed the tokens that are to be kept",
            )
        if self.pages and rows[-1] != count - 1:
            still = next(index for index, row in enumerate(rows) if index != row)
            start = self.length + still
            source = [self.length + row for row in rows[still:]]
            self.pool.move(self.table, source, start)
            self.pool.summarise(self.table, start, self.length + count)
        if self._slot and not late:
            ahead, start = self.ahead, self.length - self.ahead
            taken = [*range(ahead), *(ahead + row for row in rows)] if ahead else rows
            self.slots.keep(self.slot, start, taken)

    def _reach(self, length: int) -> int:
        length = self.pool.cut(self.pages, length)
        points = [point for point in self.checkpoints if point.length <= length]
        earlier = [p for p in points if self.pool.cut(self.pages, p.length) == p.length]
        if self._slot and length < self.slots.lowest(self.slot):
            length = earlier[-1].length if earlier else 0
            if earlier:
                self.slots.load(self.slot, earlier[-1].content, length)
        elif self._slot:
            self.slots.cut(self.slot, self.length, length)
        self.checkpoints = tuple(earlier)
        return length

    def checkpoint(self) -> bool:
        """Keep a copy of the recurrent states at this length, for `rewind` to come back to. Past
        `limits.CHECKPOINTS` or `limits.CHECKPOINT_BYTES` of a sequence the oldest go; False where
        a single copy is over the limit. States without recurrent parts need none: True."""
        self._check_open()
        self.up_to_date()
        if not self._slot or not self.length:
            return True
        size = content_bytes(self.slots.content(self.slot, self.length))
        if size > limits.CHECKPOINT_BYTES:
            return False
        content = self.slots.kept(self.slot, self.length)
        size = content_bytes(content)
        points = [point for point in self.checkpoints if point.length < self.length]
        points.append(Checkpoint(self.length, content, size))
        while (
            len(points) > limits.CHECKPOINTS
            or sum(point.nbytes for point in points) > limits.CHECKPOINT_BYTES
        ):
            points.pop(0)
        self.checkpoints = tuple(points)
        return True

    # --- pages of others ------------------------------------------------------------------------

    def adopt(
        self, pages: Sequence[int], tokens: Sequence[int], content: SlotContent | None
    ) -> None:
        """Begin with `tokens`, whose pages others hold too and whose recurrent states are a copy
        of `content`. The state must be empty. Raises ResourceError where no slot is free."""
        self._check_open()
        slot = self._take_slot()
        if content is not None:
            self.slots.load(slot[0], content, len(tokens))
        self.pool.share(pages)
        self._slot += slot
        self.pages += pages
        self.table[: len(pages)] = pages
        self.length = len(tokens)
        if self.fed is not None:
            self.fed = [int(token) for token in tokens]

    def swap(self, index: int, page: int) -> None:
        """Hold another page with the same content in place of its own."""
        own = self.pages[index]
        if own != page:
            self.pool.share([page])
            self.pages[index] = self.table[index] = page
            self.pool.give([own])

    # --- copies -----------------------------------------------------------------------------

    def fork(self) -> CpuState:
        """A second sequence with the same committed tokens: the pages are shared until one of the
        two writes into them, the slot is copied. Raises ResourceError where no slot is free."""
        self._check_open()
        self.up_to_date()
        other = type(self)(
            self.pool, self.slots, self.context, self.fingerprint, long_rope=self.long_rope
        )
        other._remember(self.fed, long_rope=self.long_rope)
        other.expected, other.settle, other.adapter = self.expected, self.settle, self.adapter
        if not self.length:
            return other
        other._slot += other._take_slot()
        if self._slot:
            content = self.slots.content(self.slot, self.length)
            self.slots.load(other.slot, content, self.length)
        shared = self.pages[: self.pool.count(self.length)]
        self.pool.share(shared)
        other.pages += shared
        other.table[: len(shared)] = shared
        other.length, other.checkpoints = self.length, self.checkpoints
        return other

    def snapshot(self) -> dict[str, Any]:
        self._check_open()
        self.up_to_date()
        pages = self.pages[: self.pool.count(self.length)]
        parts: dict[str, Any] = {
            part: {name: pool[pages] for name, pool in pools.items()}
            for part, pools in self.pool.parts.items()
        }
        parts |= self._fresh(pages)
        if self.slots:
            parts["slots"] = self.slots.copy(self.slot, self.length) if self.length else {}
        return {
            "fingerprint": self.fingerprint,
            "length": self.length,
            **self._remembered(),
            **parts,
        }

    def _fresh(self, pages: Sequence[int]) -> dict[str, Any]:
        """Of coded pages, the tokens of the one that is not full: [1 or 0, bytes] a pool."""
        if not self.pool.coded:
            return {}
        inside = self.length % PAGE_TOKENS > 0
        held = [int(self.pool.fresh[page]) for page in pages[-1:] if inside]
        return {"fresh": {name: pool[held] for name, pool in self.pool.fresh_pools.items()}}

    def restore(self, snapshot: Mapping[str, Any]) -> None:
        self._check_open()
        self._check(snapshot)
        self._become(snapshot["length"])
        for part, pools in self.pool.parts.items():
            for name, pool in pools.items():
                pool[self.pages] = snapshot[part][name]
        self._restore_fresh(snapshot)
        if self._slot:
            self.slots.load(self.slot, snapshot["slots"], self.length)
        self._remember(snapshot.get("fed"), long_rope=snapshot["long_rope"])

    def _restore_fresh(self, snapshot: Mapping[str, Any]) -> None:
        if not self.pool.coded:
            return
        if self.length % PAGE_TOKENS:
            self.pool.open(self.pages[-1])
            at = self.pool.fresh[self.pages[-1]]
            for name, pool in self.pool.fresh_pools.items():
                pool[at] = snapshot["fresh"][name][0]
        for page in self.pages[: self.length // PAGE_TOKENS]:
            self.pool.seal(page)

    def _become(self, length: int) -> None:
        """Hold pages of its own and a slot for `length` tokens and no more, whatever was held
        before. All or nothing."""
        pool = self.pool
        own = [page for page in self.pages if not pool.shared(page)]
        wanted = pool.count(length)
        slot = self._take_slot() if length else []
        try:
            fresh = pool.take(max(0, wanted - len(own)))
        except ResourceError:
            self.slots.give(slot)
            raise
        kept = own[:wanted] + fresh
        pool.give([page for page in self.pages if page not in set(kept)])
        self.pages[:] = kept
        self._slot += slot
        self.table[:wanted] = kept
        self.behind.clear()
        self.pending, self.ahead, self.offered = 0, 0, None
        self.length, self.checkpoints = length, ()
        self._shrink()

    def _check(self, snapshot: Mapping[str, Any]) -> None:
        found = snapshot.get("fingerprint")
        if found != self.fingerprint:
            raise RequestError(
                f"the snapshot belongs to model {found!r}, this is {self.fingerprint!r}",
                code="snapshot",
                hint="restore snapshots only into sessions of the same bundle and KV format",
            )
        length = snapshot.get("length")
        if not is_whole(length) or not 0 <= length <= self.context:
            raise RequestError(
                f"the snapshot holds {length!r} tokens, this state takes 0 to {self.context}",
                code="snapshot",
            )
        self._check_remembered(snapshot)
        count = self.pool.count(length)
        for part, pools in self.pool.parts.items():
            _check_pages(snapshot, part, pools, count)
        if self.pool.coded:
            _check_pages(snapshot, "fresh", self.pool.fresh_pools, int(length % PAGE_TOKENS > 0))
        damage = self.slots.fault(snapshot.get("slots"), length) if self.slots else ""
        if damage:
            raise RequestError(f"a snapshot of {length} tokens, {damage}", code="snapshot")

    @property
    def nbytes(self) -> int:
        slot = self.slots.bytes_per_slot if self._slot else 0
        points = sum(point.nbytes for point in self.checkpoints)
        fresh = sum(self.pool.fresh[page] >= 0 for page in self.pages) if self.pool.coded else 0
        pages = len(self.pages) * self.pool.bytes_per_page + fresh * self.pool.bytes_per_fresh
        return int(pages + slot + points)

    def commit(self, path: int | Sequence[int]) -> None:
        self._check_open()
        super().commit(path)
        self._seal(self.length // PAGE_TOKENS - 1)

    def _seal(self, count: int) -> None:
        """The first `count` pages are full and behind the last that can be cut."""
        for page in reversed(self.pages[: max(0, count)] if self.pool.coded else ()):
            if self.pool.fresh[page] < 0:
                break
            self.pool.seal(page)

    def rewind(self, length: int) -> int:
        self._check_open()
        return super().rewind(length)

    def begin_step(self) -> None:
        """Nobody gives the memory back until `end_step`. Raises RequestError for closed states."""
        self.stepping = True
        self._check_open()

    def end_step(self) -> None:
        """The step is over; what was closed on the way is given back now."""
        self.stepping = False
        if self.closed:
            self._give_back()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            if not self.stepping:
                self._give_back()

    def _give_back(self) -> None:
        self.length = self.pending = self.held = 0
        self.behind.clear()
        self._shrink()


def _check_pages(
    snapshot: Mapping[str, Any], part: str, pools: Mapping[str, NDArray[np.uint8]], count: int
) -> None:
    """Raises RequestError where a part of a snapshot is not `count` pages of each pool."""
    arrays = snapshot.get(part)
    for name, pool in pools.items():
        expected = (count, pool.shape[1])
        got = arrays.get(name) if isinstance(arrays, Mapping) else None
        if not isinstance(got, np.ndarray) or (got.shape, got.dtype) != (
            expected,
            np.dtype(np.uint8),
        ):
            raise RequestError(
                f"the snapshot's {part} of {name!r} are damaged, expected uint8 {expected}",
                code="snapshot",
            )
