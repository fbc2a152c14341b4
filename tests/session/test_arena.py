"""Placement in the arena: what lives at once does not overlap, what does not shares, in time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgert.session.arena import LINE, Arena, place


@dataclass(frozen=True)
class Access:
    """An instruction as placement sees it."""

    writes: str
    reads: tuple[str, ...] = ()
    in_place: str = ""
    barrier: int = 1


def chain(count: int, *, barrier: int = 1) -> list[Access]:
    """Each step reads what the one before has written."""
    return [Access(f"v{i}", (f"v{i - 1}",) if i else (), barrier=barrier) for i in range(count)]


def test_a_chain_needs_two_places() -> None:
    offsets, size = place(chain(50), {f"v{i}": 100 for i in range(50)}, ())
    assert size == 2 * 128
    assert {offset % LINE for offset in offsets.values()} == {0}


def test_what_a_thread_may_still_read_is_not_given_away() -> None:
    """Without a barrier behind it, a reader may lag: the next step must not write there."""
    steps = [Access("a"), Access("tiles", ("a",), barrier=2), Access("y", ("tiles",))]
    sizes = dict.fromkeys(("a", "tiles", "y"), 64)
    offsets, _ = place(steps, sizes, ())
    assert len(set(offsets.values())) == 3
    behind = [*steps, Access("z", ("y",))]
    offsets, size = place(behind, {**sizes, "z": 64}, ())
    assert size == 3 * 64
    assert offsets["z"] in (offsets["a"], offsets["tiles"])


def test_in_place_takes_over_and_outputs_stand_apart() -> None:
    steps = [Access("x"), Access("y", ("x",), in_place="x"), Access("out", ("y",), in_place="y")]
    offsets, size = place(steps, dict.fromkeys(("x", "y", "out"), 64), ("out",))
    assert offsets == {"x": 0, "y": 0}
    assert size == 64


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_living_values_never_overlap(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 25))
    steps, sizes = [], {}
    for index in range(count):
        reads = data.draw(st.lists(st.integers(0, index - 1), max_size=3)) if index else []
        barrier = data.draw(st.sampled_from((1, 1, 2, 0)))
        steps.append(Access(f"v{index}", tuple(f"v{i}" for i in reads), barrier=barrier))
        sizes[f"v{index}"] = data.draw(st.integers(1, 300))
    offsets, size = place(steps, sizes, ())
    last = {f"v{i}": i for i in range(count)}
    for index, step in enumerate(steps):
        last.update(dict.fromkeys(step.reads, index))
    barriers = [i for i, step in enumerate(steps) if step.barrier == 1]
    spans = []
    for index in range(count):
        name = f"v{index}"
        end = next((i for i in barriers if i >= last[name]), count)
        spans.append((index, end, offsets[name], offsets[name] + sizes[name]))
        assert offsets[name] + sizes[name] <= size
    for i, (born, end, low, high) in enumerate(spans):
        for later, _, other_low, other_high in spans[i + 1 :]:
            if born <= later <= end:
                assert high <= other_low or other_high <= low


@pytest.mark.parametrize("alive", [False, True])
def test_placement_is_not_quadratic(alive: bool) -> None:
    """Sixteen times the steps take less than fifty times as long (256 times if it were)."""

    def seconds(count: int) -> float:
        steps = chain(count)
        if alive:
            steps.append(Access("end", tuple(f"v{i}" for i in range(count))))
        sizes = {step.writes: 64 for step in steps}
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            place(steps, sizes, ())
            best = min(best, time.process_time() - start)
        return best

    assert seconds(16_000) < 50 * max(seconds(1000), 1e-3)


def test_free_neighbours_merge() -> None:
    arena = Arena()
    starts = [arena.take(64) for _ in range(4)]
    for start in (starts[0], starts[2], starts[1]):
        arena.give(start, 64)
    assert arena.take(3 * 64) == 0
    assert arena.size == 4 * 64
