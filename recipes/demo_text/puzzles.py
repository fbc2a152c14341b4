"""Word problems that are sorted, counted or followed rather than added up."""

from __future__ import annotations

from itertools import pairwise

from .grammar import listing, pick
from .working import NAMES, THINGS, Answer, Working, many

COLOURS = tuple("red blue green yellow white black brown".split())
OBJECTS = {"ball": "balls", "cup": "cups", "hat": "hats", "box": "boxes", "kite": "kites",
           "lamp": "lamps", "boat": "boats", "drum": "drums", "scarf": "scarfs"}  # fmt: skip
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
EVENTS = tuple("picnic race party concert fair test trip".split())
PLACES = tuple("box basket drawer bag jar cupboard tin".split())
SMALL = tuple("key coin ring pen ball".split())
SCALES = (
    ("taller", "shorter", "tallest", "shortest"),
    ("older", "younger", "oldest", "youngest"),
    ("faster", "slower", "fastest", "slowest"),
    ("heavier", "lighter", "heaviest", "lightest"),
    ("stronger", "weaker", "strongest", "weakest"),
)


def order(w: Working, steps: int) -> Answer:
    people = w.rng.sample(NAMES, min(5, steps + 1))  # from the most to the least
    more, less, most, least = pick(w.rng, SCALES)
    pairs = list(pairwise(people))
    for a, b in w.rng.sample(pairs, len(pairs)):
        if w.chance(0.55):
            w.tell("{a} is {more} than {b}.", a=a, b=b, more=more)
        else:
            w.tell("{b} is {less} than {a}.", a=a, b=b, less=less)
    for a, b in pairs:
        w.think(f"{a} is {more} than {b}")
    w.think(f"from {most} to {least} the order is {listing(people)}")
    asked = {f"the {most}": people[0], f"the {least}": people[-1], f"the second {most}": people[1]}
    what = w.rng.choices(tuple(asked), weights=(2, 2, 1))[0]
    w.tell("Who is {what}?", what=what)
    w.think(f"{what} is {asked[what]}")
    return Answer(f"{asked[what]} is {what}.", asked[what], tuple(people))


def sort(w: Working, steps: int) -> Answer:
    people = w.rng.sample(NAMES, max(3, steps))
    amounts, noun = w.rng.sample(range(2, 40), len(people)), pick(w.rng, THINGS)
    w.tell(
        listing([f"{p} has {many(k, noun)}" for p, k in zip(people, amounts, strict=True)]) + "."
    )
    ranked = sorted(zip(amounts, people, strict=True))
    (low, poor), (high, rich) = ranked[0], ranked[-1]
    if w.chance(0.5):
        w.tell("Put them in order from the fewest {noun} to the most.", noun=noun)
        w.think(f"the smallest number is {low}, which is {poor}")
        for k, who in ranked[1:-1]:
            w.think(f"next is {k}, which is {who}")
        w.think(f"the largest is {high}, which is {rich}")
        names = [who for _, who in ranked]
        return Answer(f"The order is {listing(names)}.", ", ".join(names), tuple(people))
    w.tell("How many more {noun} does the one with the most have than the one with the fewest?",
           noun=noun)  # fmt: skip
    w.think(f"the most is {high}, which {rich} has")
    w.think(f"the fewest is {low}, which {poor} has")
    w.n = high
    w.think(f"the difference is {w.minus(low)}")
    return Answer(f"The difference is {w.n}.", w.n)


def count(w: Working, steps: int) -> Answer:
    colour, thing, by_colour = pick(w.rng, COLOURS), pick(w.rng, tuple(OBJECTS)), w.chance(0.5)
    rows = []
    for place in range(w.some(steps + 2, steps + 5)):
        hit = place < steps
        other_colour = pick(w.rng, [c for c in COLOURS if c != colour or not by_colour])
        other_thing = pick(w.rng, [t for t in OBJECTS if t != thing or by_colour])
        rows.append((
            colour if hit and by_colour else other_colour,
            thing if hit and not by_colour else other_thing,
            hit,
        ))  # fmt: skip
    w.rng.shuffle(rows)
    w.tell("(on the table|in the room|in the bag) there are {all}.",
           all=listing([f"a {c} {t}" for c, t, _ in rows]))  # fmt: skip
    kind = f"things are {colour}" if by_colour else f"{OBJECTS[thing]} are there"
    w.tell("How many {kind}?", kind=kind)
    for c, t, hit in rows:
        w.n += hit
        if hit:
            w.think(f"the {c} {t} makes {w.n}")
    w.think(f"the count is {w.n}")
    text = f"{w.n} things are {colour}." if by_colour else f"There are {w.n} {OBJECTS[thing]}."
    return Answer(text, w.n)


def weekday(w: Working, steps: int) -> Answer:
    day = w.some(0, 6)
    w.tell("Today is {day}.", day=DAYS[day])
    w.think(f"today is {DAYS[day]}")
    before = ""
    for event in w.rng.sample(EVENTS, steps):
        k, later = w.some(1, 4), not before or w.chance(0.6)
        span, sign = many(k, "days"), 1 if later else -1
        words = f"{span} {'after' if later else 'before'}"
        if before:
            w.tell("The {event} is {words} the {before}.", event=event, words=words, before=before)
        else:
            w.tell("The {event} is in {span}.", event=event, span=span)
        path = [DAYS[(day + sign * step) % 7] for step in range(1, k + 1)]
        goes = "goes" if later else "goes back"
        w.think(f"{words} {DAYS[day]} {goes} to {', '.join(path)}")
        day, before = (day + sign * k) % 7, event
    w.tell("On which day is the {event}?", event=before)
    w.think(f"the {before} is on {DAYS[day]}")
    return Answer(f"The {before} is on {DAYS[day]}.", DAYS[day], DAYS)


def moves(w: Working, steps: int) -> Answer:
    people, (thing, decoy) = w.rng.sample(NAMES, 3), w.rng.sample(SMALL, 2)
    at, aside = w.rng.sample(PLACES, 2)
    w.tell("The {thing} is in the {at} and the {decoy} is in the {aside}.",
           thing=thing, at=at, decoy=decoy, aside=aside)  # fmt: skip
    w.think(f"the {thing} starts in the {at}")
    for step in range(steps):
        who = pick(w.rng, people)
        if step and w.chance(0.3):
            aside = _elsewhere(w, aside)
            w.tell("{who} moves the {decoy} to the {aside}.", who=who, decoy=decoy, aside=aside)
            w.think(f"the {decoy} does not matter, and the {thing} stays in the {at}")
        else:
            at = _elsewhere(w, at)
            w.tell("{who} (puts the {thing} (in|into)|moves the {thing} (to|into)) the {at}.",
                   who=who, thing=thing, at=at)  # fmt: skip
            w.think(f"{who} brings it to the {at}")
    w.tell("Where is the {thing} (now|in the end)?", thing=thing)
    w.think(f"the {thing} is in the {at}")
    return Answer(f"The {thing} is in the {at}.", at, PLACES)


def _elsewhere(w: Working, place: str) -> str:
    return pick(w.rng, [p for p in PLACES if p != place])
