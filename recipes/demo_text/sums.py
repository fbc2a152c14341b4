"""Word problems whose answer is a sum worked out step by step."""

from __future__ import annotations

from itertools import pairwise

from .grammar import listing, pick
from .working import NAMES, THINGS, Answer, Working, many, pronouns

GOODS = tuple("pen book cap cake toy cup pie map ball kite".split())


def running(w: Working, steps: int) -> Answer:
    who, other = w.rng.sample(NAMES, 2)
    noun, slots = pick(w.rng, THINGS), pronouns(who) | {"other": other}
    w.n = w.some(4, 30)
    w.tell("{who} has {things}.", things=many(w.n, noun), **slots)
    w.think(f"{who} starts with {w.n}")
    for step in range(steps):
        lead = "(then|after that|later|) " if step else ""
        k, draw = w.some(2, 15), w.rng.random()
        if draw < 0.12 and w.n <= 40:
            w.tell(lead + "{she} doubles {her} {noun}.", noun=noun, **slots)
            w.think(f"twice {w.n} gives {w.times(2)}")
        elif draw < 0.22 and w.n % 2 == 0:
            w.tell(lead + "{she} gives half of them to {other}.", **slots)
            w.think(f"half of {w.n} leaves {w.over(2)}")
        elif draw < 0.6 or w.n <= 2:
            w.tell(lead + "{she} (finds|buys|gets|picks up) {k} more.", k=k, **slots)
            w.think(f"adding {k} gives {w.plus(k)}")
        else:
            k = min(k, w.n - 1)
            w.tell(lead + "{she} (gives {k} to {other}|loses {k}|sells {k}|gives {k} away).",
                   k=k, **slots)  # fmt: skip
            w.think(f"taking away {k} leaves {w.minus(k)}")
    w.tell("How many {noun} does {who} have (now|in the end|left)?", noun=noun, **slots)
    w.think(f"{who} has {many(w.n, noun)}")
    return Answer(f"{who} has {many(w.n, noun)}( now|).", w.n)


def chain(w: Working, steps: int) -> Answer:
    people, noun = w.rng.sample(NAMES, steps), pick(w.rng, THINGS)
    w.n = w.some(2, 12)
    w.tell("{who} has {things}.", who=people[0], things=many(w.n, noun))
    w.think(f"{people[0]} has {w.n}")
    amounts = [w.n]
    for before, who in pairwise(people):
        k, draw, than = w.some(2, 9), w.rng.random(), {"a": before, "who": who, "noun": noun}
        if draw < 0.25 and w.n <= 30:
            k = pick(w.rng, (2, 3)) if w.n <= 15 else 2
            w.tell(
                "{who} has {k} as many {noun} as {a}.", k=("twice", "three times")[k - 2], **than
            )
            w.think(f"{who} has {w.times(k)}")
        elif draw < 0.4 and w.n % 2 == 0:
            w.tell("{who} has half as many {noun} as {a}.", **than)
            w.think(f"{who} has {w.over(2)}")
        elif draw < 0.7 or w.n <= k:
            w.tell("{who} has {k} more {noun} than {a}.", k=k, **than)
            w.think(f"{who} has {w.plus(k)}")
        else:
            w.tell("{who} has {k} fewer {noun} than {a}.", k=k, **than)
            w.think(f"{who} has {w.minus(k)}")
        amounts.append(w.n)
    if steps > 2 and w.chance(0.35):
        w.tell("How many {noun} does {who} have?", noun=noun, who=people[-1])
        w.think(f"the answer is {w.n}")
        return Answer(f"{people[-1]} has {many(w.n, noun)}.", w.n)
    w.tell("How many {noun} do they have (altogether|in all|together)?", noun=noun)
    w.n = amounts[0]
    for rest, amount in zip(range(len(amounts) - 2, -1, -1), amounts[1:], strict=True):
        w.think(f"the {'sum so far' if rest else 'total'} is {w.plus(amount)}")
    return Answer(f"They have {many(w.n, noun)} (altogether|in all|together).", w.n)


def shop(w: Working, steps: int) -> Answer:
    who = pick(w.rng, NAMES)
    goods = w.rng.sample(GOODS, 3 if steps == 5 else 2)
    prices = [w.some(2, 12) for _ in goods]
    counts = [w.some(2, 6) for _ in goods]
    if steps == 2:
        counts[1] = 1
    costs = [f"a {g} costs {p} dollars" for g, p in zip(goods, prices, strict=True)]
    w.tell((" and " if len(goods) == 2 else ". ").join(costs) + ".")
    bag = [many(n, f"{g}s") for n, g in zip(counts, goods, strict=True)]
    w.tell("{who} buys {bag}.", who=who, bag=listing(bag))
    for n, thing, price in zip(counts, bag, prices, strict=True):
        cost = f"cost {n} x {price} = {n * price}" if n > 1 else f"costs {price}"
        w.think(f"{thing if n > 1 else 'the ' + thing[2:]} {cost} dollars")
    w.n = counts[0] * prices[0]
    for n, price in zip(counts[1:], prices[1:], strict=True):
        w.think(f"the cost so far is {w.plus(n * price)} dollars")
    slots = pronouns(who)
    if steps < 4:
        w.tell("How much does {she} pay?", **slots)
        return Answer(f"{who} pays {many(w.n, 'dollars')}.", w.n)
    cost, paid = w.n, w.n + w.some(1, 20)
    w.tell("{she} pays with {paid} dollars. How much change does {she} get?", paid=paid, **slots)
    w.n = paid
    w.think(f"the change is {w.minus(cost)} dollars")
    return Answer(f"{who} gets {many(w.n, 'dollars')} back.", w.n)


def groups(w: Working, steps: int) -> Answer:
    noun, boxes = pick(w.rng, THINGS), pick(w.rng, ("boxes", "bags", "baskets", "trays", "rows"))
    w.n, each = w.some(2, 9), w.some(3, 10)
    w.tell("There are {n} {boxes} with {things} each.", n=w.n, boxes=boxes, things=many(each, noun))
    w.think(f"{w.n} {boxes} hold {w.times(each)} {noun}")
    for _ in range(steps - 2):
        k = w.some(2, 9)
        if w.chance(0.5) and w.n > k + 4:
            w.tell(
                "({k} of them are lost|someone takes {k} of them away|{k} of them are sold).", k=k
            )
            w.think(f"after that {w.minus(k)} are left")
        else:
            w.tell("(then|later) {k} more {noun} are added.", k=k, noun=noun)
            w.think(f"after that there are {w.plus(k)}")
    children = [c for c in range(2, 10) if w.n % c == 0 and w.n > c]
    if children and w.chance(0.8):
        c = pick(w.rng, children)
        lead = "(the rest are|all of them are)" if len(w.told) > 1 else "they are"
        w.tell(lead + " shared equally by {c} children. How many {noun} does each child get?",
               c=c, noun=noun)  # fmt: skip
        w.think(f"each child gets {w.over(c)}")
        return Answer(f"Each child gets {many(w.n, noun)}.", w.n)
    k = w.some(2, min(9, w.n - 1))
    w.tell("In the end {k} {noun} are eaten by a goat. How many {noun} are left?", k=k, noun=noun)
    w.think(f"{w.minus(k)} are left")
    return Answer(f"{many(w.n, noun)} {'is' if w.n == 1 else 'are'} left.", w.n)


def clock(w: Working, steps: int) -> Answer:
    slots = pronouns(pick(w.rng, NAMES))
    act = pick(w.rng, ("reads", "runs", "swims", "draws", "practises", "walks"))
    morning = w.n = pick(w.rng, (5, 10, 15, 20))
    w.tell("{who} {act} for {n} minutes in the morning.", act=act, n=w.n, **slots)
    w.think(f"the morning has {w.n} minutes")
    if w.chance(0.5):
        w.tell("In the evening {she} {act} for twice as long.", act=act, **slots)
        w.think(f"the evening has {w.times(2)} minutes")
    else:
        k = pick(w.rng, (5, 10, 15))
        w.tell("In the evening {she} {act} {k} minutes longer than in the morning.",
               act=act, k=k, **slots)  # fmt: skip
        w.think(f"the evening has {w.plus(k)} minutes")
    evening, w.n = w.n, morning
    w.think(f"one day has {w.plus(evening)} minutes")
    if steps == 2:
        w.tell("How many minutes is that in one day?")
        return Answer(f"That is {w.n} minutes in one day.", w.n)
    days = w.some(2, 5)
    w.think(f"{days} days have {w.times(days)} minutes")
    if steps == 3:
        w.tell("How many minutes is that in {days} days?", days=days)
        return Answer(f"In {days} days that is {w.n} minutes.", w.n)
    k = pick(w.rng, (5, 10, 20))
    w.tell("{she} does this for {days} days, but on the last day {she} stops {k} minutes early. "
           "How many minutes is that in all?", days=days, k=k, **slots)  # fmt: skip
    w.think(f"stopping early leaves {w.minus(k)} minutes")
    return Answer(f"That is {w.n} minutes in all.", w.n)


def age(w: Working, steps: int) -> Answer:
    people = w.rng.sample(NAMES, min(4, steps))
    w.n = w.some(5, 12)
    w.tell("{who} is {n} years old.", who=people[0], n=w.n)
    w.think(f"{people[0]} is {w.n}")
    for a, b in pairwise(people):
        k = w.some(2, 6)
        if w.chance(0.3) and w.n <= 14:
            w.tell("{b} is twice as old as {a}.", a=a, b=b)
            w.think(f"{b} is {w.times(2)}")
        elif w.chance(0.5) or w.n <= k + 1:
            w.tell("{b} is {k} years older than {a}.", a=a, b=b, k=k)
            w.think(f"{b} is {w.plus(k)}")
        else:
            w.tell("{b} is {k} years younger than {a}.", a=a, b=b, k=k)
            w.think(f"{b} is {w.minus(k)}")
    k, who = w.some(2, 9), people[-1]
    w.tell("How old will {who} be in {k} years?", who=who, k=k)
    w.think(f"in {k} years {who} will be {w.plus(k)}")
    return Answer(f"{who} will be {w.n} years old.", w.n)


def distance(w: Working, steps: int) -> Answer:
    slots, miles = pronouns(pick(w.rng, NAMES)), w.some(2, 9)
    w.n = w.some(2, 6)
    w.tell("{who} (walks|rides|hikes) {miles} miles (a|each) day for {days} days.",
           miles=miles, days=w.n, **slots)  # fmt: skip
    w.think(f"{w.n} days make {w.times(miles)} miles")
    for _ in range(steps - 2):
        k = w.some(2, 12)
        w.tell("(then|after that) {she} goes {k} more miles.", k=k, **slots)
        w.think(f"with {k} more it is {w.plus(k)} miles")
    gone, w.n = w.n, w.n + w.some(3, 20)
    w.tell("The whole way is {n} miles long. How many miles are left?", n=w.n)
    w.think(f"{w.minus(gone)} miles are left")
    return Answer(f"There are {w.n} miles left.", w.n)


def queue(w: Working, steps: int) -> Answer:
    slots = pronouns(pick(w.rng, NAMES))
    w.n = w.some(6, 15)
    w.tell("{who} waits in a line, and {n} people stand in front of {him}.", n=w.n, **slots)
    w.think(f"{w.n} people are in front")
    for _ in range(steps - 1):
        k = w.some(1, 4)
        if w.chance(0.65) and w.n > k:
            w.tell(
                "{them} from the front.", them="1 person leaves" if k == 1 else f"{k} people leave"
            )
            w.think(f"{w.minus(k)} are in front")
        else:
            them = "1 friend slips" if k == 1 else f"{k} friends slip"
            w.tell("{them} in before {him}.", them=them, **slots)
            w.think(f"{w.plus(k)} are in front")
    w.tell("What is the number of {who}'s place in the line?", **slots)
    w.think(f"the place of {slots['who']} is {w.plus(1)}")
    return Answer(f"{slots['who']} is at place {w.n}.", w.n)


def saving(w: Working, steps: int) -> Answer:
    slots, weeks, each = pronouns(pick(w.rng, NAMES)), w.some(3, 9), w.some(2, 9)
    w.tell("{who} saves {each} dollars a week for {weeks} weeks.", each=each, weeks=weeks, **slots)
    w.n = weeks
    w.think(f"{weeks} weeks give {w.times(each)} dollars")
    for _ in range(steps - 2):
        k = w.some(2, 12)
        if w.chance(0.5) and w.n > k:
            w.tell("(then|later) {she} spends {k} dollars.", k=k, **slots)
            w.think(f"spending leaves {w.minus(k)} dollars")
        else:
            w.tell("{she} gets {k} dollars from {her} (aunt|uncle|mother|father).", k=k, **slots)
            w.think(f"the gift makes {w.plus(k)} dollars")
    saved, w.n = w.n, w.n + w.some(2, 25)
    w.tell("A (bike|game|tent|clock|coat) costs {n} dollars. "
        "How many more dollars does {she} need?",
           n=w.n, **slots)  # fmt: skip
    w.think(f"{slots['who']} needs {w.minus(saved)} dollars")
    return Answer(f"{slots['who']} needs {w.n} more dollars.", w.n)
