"""Plans of the composed scenes: which objects stand where, and the caption that is true of them.

Coordinates are pixels of the 128 x 128 canvas, y downward; an object is its centre and the side of
its square. A plan depends on its seed alone.
"""

from __future__ import annotations

import random
import zlib
from dataclasses import asdict, dataclass
from itertools import combinations

from .subjects import BACKGROUNDS, NAMES, a

SIZE = 128
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 220),
    "yellow": (230, 210, 50), "magenta": (200, 60, 190), "cyan": (60, 200, 210),
}  # fmt: skip
SHAPES = ("square", "circle", "triangle", "ring")
SHAPE_NAMES = tuple(f"{c} {s}" for c in COLOURS for s in SHAPES)
RELATIONS = {
    "left": ("left of", "left of", "to the left of"),
    "right": ("right of", "right of", "to the right of"),
    "above": ("above", "above", "on top of"),
    "below": ("below", "below", "under"),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
HELD_OUT = 5  # one pair of names in so many is never trained on
# (most, least) side of an object by the number of objects
SIDES = {
    "emoji": {1: (72, 108), 2: (42, 58), 3: (34, 46)},
    "shapes": {1: (32, 48), 2: (32, 48), 3: (32, 40)},
}
GAP = {"emoji": 7, "shapes": 8}
OFFSET = 36  # least distance on the main axis; the other axis has at most half the actual one


@dataclass(frozen=True)
class Thing:
    """An object: subject or coloured shape, centre and side."""

    name: str
    x: float
    y: float
    side: float


@dataclass(frozen=True)
class Scene:
    """A plan. `clauses` are (first, relation, second) by position in `things`."""

    kind: str  # "emoji" or "shapes"
    seed: int
    caption: str
    things: tuple[Thing, ...]
    clauses: tuple[tuple[int, str, int], ...]
    style: str = ""  # of emoji
    background: str = ""  # of emoji; shapes stand on noisy gray
    gray: float = 0.0

    def line(self) -> dict:
        """For the sidecar file."""
        return asdict(self)


def is_held_out(one: str, two: str) -> bool:
    """Whether no training scene shows the two together."""
    return zlib.crc32("|".join(sorted((one, two))).encode()) % HELD_OUT == 0


def unseen(names: tuple[str, ...]) -> bool:
    """Whether any two of the names are held out."""
    return any(is_held_out(one, two) for one, two in combinations(names, 2))


def relations(first: Thing, second: Thing) -> set[str]:
    """What is true of `first` seen from `second` (GenEval's rule on centres and sides)."""
    offset = (first.x - second.x, first.y - second.y)
    length = max((offset[0] ** 2 + offset[1] ** 2) ** 0.5, 1e-9)
    slack = 0.1 * (first.side + second.side)
    u, v = ((1 if o > 0 else -1) * max(abs(o) - slack, 0.0) / length for o in offset)
    named = {"left": u < -0.5, "right": u > 0.5, "above": v < -0.5, "below": v > 0.5}
    return {name for name, true in named.items() if true}


def _apart(things: list[Thing], gap: float) -> bool:
    return all(
        max(abs(p.x - q.x), abs(p.y - q.y)) >= (p.side + q.side) / 2 + gap
        for p, q in combinations(things, 2)
    )


def _inside(thing: Thing) -> bool:
    half = thing.side / 2 + 2
    return half <= thing.x <= SIZE - half and half <= thing.y <= SIZE - half


def _beside(
    rng: random.Random, first: Thing, relation: str, name: str, side: float, gap: float
) -> Thing:
    """Something that `first` stands `relation` of."""
    dx, dy = DIRECTIONS[relation]
    ahead = first.x if dx > 0 else SIZE - first.x if dx else first.y if dy > 0 else SIZE - first.y
    main = rng.uniform(max(OFFSET, (first.side + side) / 2 + gap), max(OFFSET, ahead - side / 2))
    other = rng.uniform(-0.5, 0.5) * main
    return Thing(
        name,
        first.x - dx * main + (other if dy else 0),
        first.y - dy * main + (other if dx else 0),
        side,
    )


def _start(rng: random.Random, side: float, wanted: tuple[str, ...]) -> tuple[float, float]:
    """A centre for the first object that leaves room for the others."""
    low, high = side / 2 + 2, SIZE - side / 2 - 2
    point = [rng.uniform(low, high), rng.uniform(low, high)]
    for relation in wanted:
        axis, sign = (
            (0, DIRECTIONS[relation][0])
            if DIRECTIONS[relation][0]
            else (1, DIRECTIONS[relation][1])
        )
        room = (low, high - OFFSET) if sign < 0 else (low + OFFSET, high)
        point[axis] = rng.uniform(*room)
    return point[0], point[1]


def _place(
    rng: random.Random, kind: str, names: tuple[str, ...], wanted: tuple[str, ...]
) -> tuple[Thing, ...]:
    """Positions in which the first object stands in the wanted relation to each other one."""
    low, high = SIDES[kind][len(names)]
    gap = GAP[kind]
    while True:
        sides = [rng.uniform(low, high) for _ in names]
        first = Thing(names[0], *_start(rng, sides[0], wanted), sides[0])
        others = [
            _beside(rng, first, relation, name, side, gap)
            for relation, name, side in zip(wanted, names[1:], sides[1:], strict=True)
        ]
        things = [first, *others]
        if all(map(_inside, others)) and _apart(things, gap):
            return tuple(Thing(t.name, round(t.x, 2), round(t.y, 2), round(t.side, 2))
                         for t in things)  # fmt: skip


def _names(rng: random.Random, pool: tuple[str, ...], count: int, held_out: bool) -> tuple:
    while True:
        names = tuple(rng.sample(pool, count))
        if count == 1 or unseen(names) == held_out:
            return names


def _wanted(rng: random.Random, count: int) -> tuple[str, ...]:
    """One relation, or one of each axis."""
    axes = [rng.choice(("left", "right")), rng.choice(("above", "below"))]
    rng.shuffle(axes)
    return tuple(axes[:count])


def _sentence(rng: random.Random, names: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    said = [f"{rng.choice(RELATIONS[r])} {a(n)}" for r, n in zip(wanted, names[1:], strict=True)]
    return " ".join([a(names[0]), *([" and ".join(said)] if said else [])])


def make_scene(kind: str, seed: int, *, held_out: bool = False, things: int | None = None) -> Scene:
    """The scene of a seed, with so many things. held_out: with a pair that training never shows."""
    rng = random.Random(f"{kind} {seed}")
    count = things or 0
    if not count:
        count = rng.choices((1, 2, 3), (0.22, 0.5, 0.28) if kind == "emoji" else (0.1, 0.6, 0.3))[0]
    names = _names(rng, NAMES if kind == "emoji" else SHAPE_NAMES, count, held_out)
    wanted = _wanted(rng, count - 1)
    placed = _place(rng, kind, names, wanted)
    caption = _sentence(rng, names, wanted)
    clauses = tuple((0, relation, i + 1) for i, relation in enumerate(wanted))
    if kind == "shapes":
        gray = round(rng.uniform(0.25, 0.85), 3)
        return Scene(kind, seed, caption, placed, clauses, gray=gray)
    style = rng.choice(("flat", "3d"))
    background = "white" if rng.random() < 0.45 else rng.choice(list(BACKGROUNDS)[1:])
    if background != "white":
        caption += f" on {a(background)} background"
    if rng.random() < 0.6:
        caption += f", {style} style"
    return Scene(kind, seed, caption, placed, clauses, style=style, background=background)


def make_scenes(kind: str, count: int, first: int = 0, **options: bool | int | None) -> list[Scene]:
    """`count` scenes of consecutive seeds from `first` on."""
    return [make_scene(kind, first + i, **options) for i in range(count)]  # type: ignore[arg-type]
