"""Memory of a sequence: one suite that every kind of state passes, alone and together.

Random sequences of operations run against a plain list of tokens; after each of them every living
state must hold its own text, and every page and slot must be accounted for.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels.states import (
    BlockStatsState,
    BorrowedState,
    ConvState,
    KVState,
    LatentState,
    RecurrentState,
    StateSpec,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert import limits
from edgert.errors import DeviceError, EdgertError, RequestError, ResourceError
from edgert.session.pages import PagePool
from edgert.session.slots import SlotPool
from edgert.text import saved

from .memory_writers import (
    CONTEXT,
    PAGES,
    ROWS,
    SLOTS,
    CpuMemory,
    ReferenceMemory,
    graph_of,
    summarise,
)

Memory = CpuMemory | ReferenceMemory
TWO = {"a": KVState(2, 5), "b": KVState(1, 16)}
TAILED = RecurrentState(2, 3, 4, normaliser=True, tail=20, tail_width=14)
BARE = RecurrentState(1, 4, 2)
CONV = ConvState(6, 4, tail=20)
STATS = BlockStatsState(2, 5, 16, rows=2)
ALL: dict[str, StateSpec] = {"a": KVState(2, 5), "s": TAILED, "c": CONV}

KINDS: dict[str, tuple[Callable[..., Memory], Mapping[str, StateSpec], tuple[int, ...]]] = {
    "kv-f32": (CpuMemory, TWO, (32,)),
    "kv-f16": (CpuMemory, TWO, (16,)),
    "kv-int8": (CpuMemory, TWO, (8,)),
    "kv-int4": (CpuMemory, {"a": KVState(2, 40)}, (4,)),
    "kv-stats": (CpuMemory, {"a": KVState(2, 5), "m": STATS}, (16,)),
    "latent-f32": (CpuMemory, {"l": LatentState(48)}, (32,)),
    "latent-f16": (CpuMemory, {"a": KVState(2, 5), "l": LatentState(16)}, (16,)),
    "recurrent": (CpuMemory, {"s": TAILED}, ()),
    "recurrent-plain": (CpuMemory, {"s": RecurrentState(1, 3, 2, tail=3, tail_width=5)}, ()),
    "recurrent-endless": (
        CpuMemory,
        {"s": RecurrentState(1, 1, 2, tail=1 << 40, tail_width=3)},
        (),
    ),
    "recurrent-bare": (CpuMemory, {"s": BARE}, ()),
    "recurrent-bare-normalised": (CpuMemory, {"s": RecurrentState(1, 4, 2, normaliser=True)}, ()),
    "conv": (CpuMemory, {"c": CONV}, ()),
    "conv-short": (CpuMemory, {"c": ConvState(3, 2)}, ()),
    "all": (CpuMemory, ALL, (8,)),
    "all-bare": (CpuMemory, {"a": KVState(1, 3), "s": BARE, "c": ConvState(3, 3)}, (32,)),
    "borrowed": (CpuMemory, {"a": KVState(2, 5), "l": BorrowedState("a")}, (16,)),
    "borrowed-only": (CpuMemory, {"l": BorrowedState("a", "model")}, (32,)),
    "reference": (ReferenceMemory, TWO, ()),
    "reference-latent": (ReferenceMemory, {"l": LatentState(16), "b": KVState(1, 16)}, ()),
    "reference-borrowed": (ReferenceMemory, {**TWO, "l": BorrowedState("b")}, ()),
}


def memory_of(kind: str) -> Memory:
    make, states, arguments = KINDS[kind]
    return make(states, *arguments)


@dataclass
class Actor:
    """A state, and what it must hold: the plain-Python model of a sequence."""

    state: Any
    text: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    fold: int = 0  # tokens that recurrent states have absorbed
    first: int = 0  # oldest token whose convolution input is kept
    points: list[tuple[int, int, int]] = field(default_factory=list)


class World:
    """Actors on one memory. Each operation does the same to a state and to its model."""

    def __init__(self, kind: str) -> None:
        specs = KINDS[kind][1].values()
        self.memory = memory_of(kind)
        self.tails = [s.tail for s in specs if isinstance(s, RecurrentState)]
        self.convs = [(s.width - 1, s.tail) for s in specs if isinstance(s, ConvState)]
        self.actors: list[Actor] = []
        self.token = 0
        self.saved: tuple[Any, list[int], int, int] | None = None
        self.new(0, 0)

    def new(self, a: int, b: int) -> None:
        if len(self.actors) < 4:
            self.actors.append(self._empty(self.memory.new()))

    def _empty(self, state: Any, text: list[int] | None = None) -> Actor:
        return Actor(state, text or [], first=-self.before)

    @property
    def before(self) -> int:
        return self.convs[0][0] if self.convs else 0

    def feed(self, a: int, b: int) -> None:
        actor = self._actor(a)
        count = min((40, 64, 17, 1, ROWS, 5, 63, 2, 16, 1)[b % 10], CONTEXT - len(actor.text))
        if actor.pending:
            self.discard(a, b)
        if count:
            tokens = [self.token + i for i in range(count)]
            self.token += count
            self.memory.feed(actor.state, actor.text, tokens)
            actor.pending = tokens

    def grow(self, a: int, b: int) -> None:
        self.feed(a, b)
        self.commit(a, 0)

    def commit(self, a: int, b: int) -> None:
        actor = self._actor(a)
        count = b % (len(actor.pending) + 1) if b % 4 == 3 else len(actor.pending)
        self._keep(actor, list(range(count)), count)

    def path(self, a: int, b: int) -> None:
        """Commit some of the pending tokens: those whose bits are in b."""
        actor = self._actor(a)
        rows = [row for row in range(len(actor.pending)) if b >> row % 16 & 1]
        self._keep(actor, rows, rows)

    def _keep(self, actor: Actor, rows: list[int], argument: Any) -> None:
        if 0 in self.tails and 0 < len(rows) < len(actor.pending):
            with pytest.raises(RequestError, match="all or none"):
                actor.state.commit(argument)
            assert actor.state.pending == len(actor.pending)
            return
        actor.state.commit(argument)
        actor.text += [actor.pending[row] for row in rows]
        actor.pending = []
        length = len(actor.text)
        for tail in self.tails:
            actor.fold = length if not tail else actor.fold
            while tail and length - actor.fold >= tail:
                actor.fold += max(1, tail // 2)
        for before, tail in self.convs:
            actor.first = max(actor.first, length - before - tail)
        self._forget(actor)

    def discard(self, a: int, b: int) -> None:
        actor = self._actor(a)
        actor.state.discard()
        actor.pending = []

    def rewind(self, a: int, b: int) -> None:
        actor = self._actor(a)
        length = max(0, len(actor.text) - b % 97) if b % 3 else b % (len(actor.text) + 1)
        goal, cut = length, self.memory.cut
        length = wanted = cut(actor.state, length)
        kept = [point for point in actor.points if point[0] <= length]
        actor.points = [point for point in kept if cut(actor.state, point[0]) == point[0]]
        if length < max(self._lowest(actor.fold), actor.first + self.before):
            wanted, actor.fold, actor.first = actor.points[-1] if actor.points else (0, 0, 0)
        assert actor.state.rewind(goal) == wanted
        actor.text, actor.pending = actor.text[:wanted], []
        self._forget(actor)

    def _lowest(self, fold: int) -> int:
        """The shortest text of which as much is folded."""
        return max(
            (fold + tail - max(1, tail // 2) if tail and fold else fold for tail in self.tails),
            default=0,
        )

    def _forget(self, actor: Actor) -> None:
        if not actor.text:
            actor.fold, actor.first, actor.points = 0, -self.before, []

    def checkpoint(self, a: int, b: int) -> None:
        actor = self._actor(a)
        assert actor.state.checkpoint() if isinstance(self.memory, CpuMemory) else True
        if actor.text:
            points = [point for point in actor.points if point[0] < len(actor.text)]
            points.append((len(actor.text), actor.fold, actor.first))
            actor.points = points[-limits.CHECKPOINTS :]

    def fork(self, a: int, b: int) -> None:
        actor = self._actor(a)
        if len(self.actors) < 4:
            other = self._empty(actor.state.fork(), [*actor.text])
            other.fold, other.first, other.points = actor.fold, actor.first, [*actor.points]
            self.actors.append(other)

    def snapshot(self, a: int, b: int) -> None:
        actor = self._actor(a)
        actor.state.long_rope = bool(b % 2)
        self.saved = (actor.state.snapshot(), [*actor.text], actor.fold, actor.first)

    def restore(self, a: int, b: int) -> None:
        actor = self._actor(a)
        if self.saved is not None:
            actor.state.restore(self.saved[0])
            assert actor.state.long_rope == self.saved[0]["long_rope"]
            actor.text, actor.fold, actor.first = [*self.saved[1]], *self.saved[2:]
            actor.pending, actor.points = [], []

    def close(self, a: int, b: int) -> None:
        actor = self.actors.pop(a % len(self.actors))
        if b % 2:
            actor.state.close()
            actor.state.close()
            assert actor.state.nbytes == 0
        if not self.actors:
            del actor
            self.new(0, 0)

    def _actor(self, a: int) -> Actor:
        return self.actors[a % len(self.actors)]

    def check(self) -> None:
        for actor in self.actors:
            assert actor.state.pending == len(actor.pending)
            self.memory.check(actor.state, actor.text, actor.fold, actor.first)
        self.memory.accounts([actor.state for actor in self.actors])


NAMES = (
    *("grow", "feed", "commit", "fork") * 3,
    *("path", "rewind", "restore") * 2,
    *("discard", "checkpoint", "snapshot", "close", "new"),
)
OPERATION = st.tuples(st.sampled_from(NAMES), st.integers(0, 3), st.integers(0, 2**16 - 1))


@pytest.mark.parametrize("kind", KINDS)
@given(operations=st.lists(OPERATION, min_size=20, max_size=40))
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
def test_a_state_holds_its_text(kind: str, operations: list[tuple[str, int, int]]) -> None:
    world = World(kind)
    for name, a, b in operations:
        with contextlib.suppress(ResourceError):  # small pools: what failed has changed nothing
            getattr(world, name)(a, b)
        world.check()
    world.actors.clear()
    world.memory.accounts([])


# --- what the random walk may not meet -----------------------------------------------------------


def grown(kind: str, tokens: int = 100) -> tuple[World, Actor]:
    """A world whose one actor has committed `tokens` tokens, 50 a step."""
    world = World(kind)
    actor = world.actors[0]
    for start in range(0, tokens, 50):
        new = list(range(start, min(start + 50, tokens)))
        world.memory.feed(actor.state, actor.text, new)
        actor.pending = new
        world._keep(actor, list(range(len(new))), len(new))
    return world, actor


@pytest.mark.parametrize("kind", KINDS)
def test_content_does_not_depend_on_how_tokens_were_grouped(kind: str) -> None:
    world, actor = grown(kind, 150)
    single = world.memory.new()
    for token in actor.text:
        world.memory.feed(single, list(range(token)), [token])
        single.commit(1)
    world.memory.check(single, actor.text, actor.fold, actor.first)


def test_only_a_shared_page_that_is_written_is_copied() -> None:
    world, actor = grown("kv-f16")
    state, fork = actor.state, actor.state.fork()
    assert fork.pages == state.pages
    world.memory.feed(fork, actor.text, [7])
    assert fork.pages[0] == state.pages[0]
    assert fork.pages[1] != state.pages[1]
    kept = [*state.pages]
    world.memory.feed(state, actor.text, [8])
    assert state.pages == kept  # nobody else holds it any more
    for each in (fork, state):
        each.rewind(64)
        world.memory.feed(each, actor.text[:64], [9])
    assert fork.pages[0] == state.pages[0]  # a full page is never written again


def test_a_restored_state_leaves_what_it_shared() -> None:
    world, actor = grown("kv-int8")
    fork = actor.state.fork()
    world.memory.feed(fork, actor.text, [500])
    fork.commit(1)
    other = world.memory.new()
    world.memory.feed(other, [], list(range(900, 960)))
    other.commit(60)
    actor.state.restore(other.snapshot())
    world.memory.check(fork, [*actor.text, 500], 0, 0)
    world.memory.check(actor.state, list(range(900, 960)), 0, 0)
    world.memory.accounts([actor.state, fork, other])


def test_checkpoints_of_text_that_was_taken_back_are_forgotten() -> None:
    world, actor = grown("recurrent", 109)
    state, text = actor.state, actor.text
    assert state.checkpoint()
    assert state.rewind(105) == 105
    text = [*text[:105], *range(600, 640)]
    world.memory.feed(state, text[:105], text[105:])
    state.commit(40)
    assert state.rewind(111) == 0


def test_the_table_stays_where_it_is() -> None:
    _, actor = grown("kv-f32")
    at = actor.state.table.ctypes.data
    saved_state = actor.state.snapshot()
    actor.state.rewind(0)
    actor.state.restore(saved_state)
    assert actor.state.table.ctypes.data == at


def test_a_dry_pool_takes_nothing_and_says_what_helps() -> None:
    world, actor = grown("kv-f32", 190)
    others = [actor.state.fork() for _ in range(3)]
    for index, other in enumerate(others):
        other.rewind(64)
        world.memory.feed(other, actor.text[:64], list(range(ROWS)))
        other.commit(ROWS - index)
    assert world.memory.pool.indices.free == 0
    before = [(other.length, [*other.pages]) for other in others]
    others[0].fork().rewind(120)
    with pytest.raises(ResourceError, match=r"0 of 9 KV pages of 64 tokens are free") as caught:
        others[0].reserve(others[0].length + 60)
    assert caught.value.code == "kv-pages"
    assert "--kv-memory" in caught.value.hint
    assert before == [(other.length, other.pages) for other in others]
    others[1].close()
    others[0].reserve(others[0].length + 60)


def test_slots_run_out_alone() -> None:
    world, actor = grown("all")
    forks = [actor.state.fork() for _ in range(SLOTS - 1)]
    with pytest.raises(ResourceError, match="all 4 slots") as caught:
        actor.state.fork()
    assert caught.value.code == "state-slots"
    world.memory.accounts([actor.state, *forks])
    empty = world.memory.new()
    with pytest.raises(ResourceError):
        empty.reserve(10)
    world.memory.accounts([actor.state, *forks, empty])


def test_checkpoints_have_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    world, actor = grown("recurrent", 50)
    state = actor.state
    assert state.checkpoint()
    size = state.checkpoints[0].nbytes
    monkeypatch.setattr(limits, "CHECKPOINT_BYTES", 2 * size)
    for count in range(3):
        world.memory.feed(state, list(range(50 + 10 * count)), list(range(10)))
        state.commit(10)
        assert state.checkpoint()
    assert [point.length for point in state.checkpoints] == [70, 80]
    monkeypatch.setattr(limits, "CHECKPOINT_BYTES", size - 100)
    assert not state.checkpoint()
    assert [point.length for point in state.checkpoints] == [70, 80]


def test_pages_come_back_from_other_threads_and_finalizers() -> None:
    world, actor = grown("all", 20)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(200):
                with_fork = actor.state.fork()
                del with_fork
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    world.memory.accounts([actor.state])


def damaged_snapshots(good: dict[str, Any]) -> list[dict[str, Any]]:
    """`good` with one thing wrong at a time, in every part it has."""
    bad: list[dict[str, Any]] = [{}, good | {"length": -1}, good | {"length": CONTEXT + 1}]
    bad += [good | {"length": True}, good | {"long_rope": None}]
    parts = set(good) - {"fingerprint", "length", "long_rope"}
    if any(good[part] for part in parts):
        bad.append(good | {"length": 3})
    for part in parts:
        bad += [good | {part: None}, good | {part: {}}] if good[part] else []
        for name, content in good[part].items():
            for wrong in damaged_parts(content):
                bad.append(good | {part: good[part] | {name: wrong}})
    if "fingerprint" in good:
        bad.append(good | {"fingerprint": "other"})
    return bad


def damaged_parts(content: Any) -> list[Any]:
    if isinstance(content, np.ndarray):
        return [None, content[:-1], content.astype(np.float64), content.tolist()]
    if isinstance(content, tuple):
        return [None, content[:1], (content[0], content[1][:-1]), (content[0], None)]
    if isinstance(content, int):
        return [content + 1, content - 1, None, True, 10_000]
    parts = [content | {"more": 1}, None]
    for name, part in content.items():
        parts += [content | {name: wrong} for wrong in damaged_parts(part)]
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_snapshots_are_refused_and_change_nothing(kind: str) -> None:
    world, actor = grown(kind)
    good = actor.state.snapshot()
    other = world.memory.new()
    world.memory.feed(other, [], [1, 2, 3])
    other.commit(3)
    world.new(0, 0)
    for bad in damaged_snapshots(good):
        with pytest.raises(RequestError) as caught:
            actor.state.restore(bad)
        assert caught.value.code == "snapshot", bad
        world.memory.check(actor.state, actor.text, actor.fold, actor.first)
    other.restore(good)
    world.memory.check(other, actor.text, actor.fold, actor.first)


@pytest.mark.parametrize("kind", KINDS)
def test_snapshots_survive_a_file(kind: str, tmp_path: Path) -> None:
    for length in (0, 64, 100):
        world, actor = grown(kind, length)
        actor.state.long_rope = True
        saved.write(tmp_path / "s", actor.state.snapshot(), {"device": "cpu"})
        other = world.memory.new()
        other.restore(saved.read(tmp_path / "s", {"device": "cpu"}))
        assert other.long_rope
        world.memory.check(other, actor.text, actor.fold, actor.first)


@pytest.mark.parametrize("kind", ["kv-f32", "all", "reference"])
def test_a_closed_state_is_refused(kind: str) -> None:
    world, actor = grown(kind)
    good = actor.state.snapshot()
    actor.state.close()
    uses: list[Callable[[], Any]] = [
        actor.state.fork,
        actor.state.snapshot,
        lambda: actor.state.restore(good),
    ]
    if isinstance(world.memory, CpuMemory):
        uses += [actor.state.checkpoint, lambda: actor.state.reserve(1)]
    for use in uses:
        with pytest.raises(RequestError) as caught:
            use()
        assert caught.value.code == "state-closed"
    world.memory.accounts([])


def test_room_has_bounds() -> None:
    for kind, tokens in (("kv-f32", CONTEXT + 1), ("recurrent", 50 + ROWS + 1)):
        world, actor = grown(kind, 50)
        with pytest.raises(RequestError) as caught:
            actor.state.reserve(tokens)
        assert caught.value.code == "context"
        world.memory.accounts([actor.state])


@pytest.mark.parametrize(
    "build",
    [
        lambda: SlotPool(graph_of({"s": TAILED}), 1, 1),
        lambda: PagePool(graph_of({"m": STATS}), 1, 4),
        lambda: PagePool(graph_of({"m": BlockStatsState(1, 1, 48)}), 1, 4, {"m": summarise}),
    ],
)
def test_states_that_cannot_be_kept_are_refused(build: Callable[[], Any]) -> None:
    with pytest.raises(DeviceError) as caught:
        build()
    assert isinstance(caught.value, EdgertError)
    assert caught.value.code == "state-kind"


def test_nothing_grows_with_steps_that_are_taken_back() -> None:
    world, actor = grown("all", 60)
    memory, state = world.memory, actor.state
    assert isinstance(memory, CpuMemory)
    for _ in range(300):
        memory.feed(state, actor.text, list(range(ROWS)))
        state.discard()
    assert len(memory.pool.indices._given) <= PAGES
    assert len(memory.slots.indices._given) <= SLOTS
    memory.accounts([state])
