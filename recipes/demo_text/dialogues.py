"""Our own everyday dialogues: small talk, simple facts, arithmetic, story requests; several
turns.

Each topic function returns one exchange or a few, as (user, assistant) pairs;
`everyday_dialogues` strings topics into conversations with greetings and goodbyes. Wordings are
drawn from a slot grammar; small talk is in talk.py.
"""

# One wording per line reads better than wrapped calls, hence no line limit and no formatter here.
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from . import facts
from .grammar import a, listing, pick, say
from .sources import Dialogue
from .stories import ANIMALS, BOYS, GIRLS, THINGS, make_story
from .talk import (
    Exchange,
    goodbye,
    greeting,
    how_are_you,
    identity,
    likes,
    thanks,
    unknown,
    wellbeing,
)

SYSTEM = (
    "You are edgert's demo model, a small and friendly assistant.",
    "You are a helpful assistant. Answer in short, simple sentences.",
    "You are a friendly assistant who likes stories.",
    "You are edgert's demo model.",
)


def colours(rng: random.Random) -> list[Exchange]:
    """The colour of a thing, a thing of a colour, or a mix of two."""
    kind = rng.random()
    if kind < 0.5:
        thing, colour = pick(rng, tuple(facts.COLOURS.items()))
        return [(say(rng, "(what colour is|what is the colour of|what color is|can you tell me the colour of) {t}?", t=thing), say(rng, "{t} is {c}.", t=thing, c=colour))]
    if kind < 0.75:
        colour = pick(rng, tuple(facts.COLOURS.values()))
        things = [t for t, c in facts.COLOURS.items() if c == colour]
        some = rng.sample(things, min(len(things), rng.randint(1, 3)))
        return [(say(rng, "(name something|tell me something|what is something|what is) {c}(.|?)", c=colour), say(rng, "{t} (is|is usually) {c}." if len(some) == 1 else "{t} are {c}.", t=listing(some), c=colour))]
    (one, two), mix = pick(rng, tuple(facts.MIXES.items()))
    one, two = (one, two) if rng.random() < 0.5 else (two, one)
    return [(say(rng, "(what do you get when you mix|what colour do you get if you mix|which colour comes from mixing) {x} and {y}?", x=one, y=two), say(rng, "if you mix {x} and {y}, you get {m}.", x=one, y=two, m=mix))]


def animals(rng: random.Random) -> list[Exchange]:
    """Sound, young, legs, home, food or description of one animal, up to three questions."""
    name, (sound, young, legs, home, food, what) = pick(rng, tuple(facts.ANIMAL_FACTS.items()))
    an, plural = a(name), {"mouse": "mice", "wolf": "wolves", "sheep": "sheep"}.get(name, name + "s")
    count = {0: "no legs", 2: "two legs", 4: "four legs", 6: "six legs", 8: "eight legs"}[legs]
    bank = [
        ("what is {an}?|tell me about {p}.|do you know what {an} is?", "{an} is {what}."),
        ("what sound does {an} make?|what does {an} say?|how does {an} sound?", "{an} {sound}."),
        ("what is a baby {n} called?|what do you call a baby {n}?|what is the young of {an} called?", "a baby {n} is called {young}."),
        ("how many legs does {an} have?|how many legs do {p} have?", "{an} has {count}."),
        ("where does {an} live?|where do {p} live?|what is the home of {an}?", "{an} lives in {home}." if not home.startswith("cold") else "{an} lives on {home}."),
        ("what does {an} eat?|what do {p} eat?|what do {p} like to eat?", "{an} eats {food}."),
    ]  # fmt: skip
    if name in ("sheep", "duck", "hen", "cow", "pig", "horse") and home == "a farm":
        bank[4] = (bank[4][0], "{an} lives on {home}.")
    slots = {"an": an, "n": name, "p": plural, "sound": sound, "young": a(young), "count": count, "home": home, "food": food, "what": what}
    return [(say(rng, f"({q})", **slots), say(rng, r, **slots)) for q, r in rng.sample(bank, rng.choice((1, 1, 2, 3)))]


def table(rng: random.Random, pairs: dict[str, str], question: str, answer: str, most: int = 2) -> list[Exchange]:
    """One or more questions that map a key to a value."""
    chosen = rng.sample(sorted(pairs.items()), rng.randint(1, most))
    return [(say(rng, question, k=k, v=v, ak=a(k), av=a(v)), say(rng, answer, k=k, v=v, ak=a(k), av=a(v))) for k, v in chosen]


def facts_tables(rng: random.Random) -> list[Exchange]:
    """Opposites, capitals, materials, jobs, uses, family, seasons, what and why."""
    kinds: list[Callable[[], list[Exchange]]] = [
        lambda: table(rng, facts.OPPOSITES, "(what is the opposite of|tell me the opposite of|what is the contrary of) (\"{k}\"|{k})?", "the opposite of {k} is {v}."),
        lambda: table(rng, facts.CAPITALS, "(what is the capital of|which city is the capital of|do you know the capital of|name the capital of) {k}?", "(the capital of {k} is {v}|{v} is the capital of {k})."),
        lambda: table(rng, facts.MADE_OF, "(what is {k} made of|what do you need to make {k}|how is {k} made)?", "{k} is made (of|from) {v}."),
        lambda: table(rng, facts.JOBS, "(what does {ak} do|what is the work of {ak}|what is {ak})?", "{ak} {v}."),
        lambda: table(rng, {v: k for k, v in facts.JOBS.items()}, "(what do you call a person who|what is the name of someone who) {k}?", "{av} {k}."),
        lambda: table(rng, facts.USES, "(what do you use {k} for|what is {k} for|what can I do with {k})?", "you use {k} to {v}."),
        lambda: table(rng, facts.FAMILY, "(who is my {k}|what do I call my {k}|what is my {k} called)?", "your {k} is your {v}."),
        lambda: table(rng, facts.SEASONS, "(what happens in {k}|tell me about {k}|what is {k} like)?", "in {k}, {v}."),
    ]  # fmt: skip
    return pick(rng, kinds)()


def what_and_why(rng: random.Random) -> list[Exchange]:
    """Definitions and reasons."""
    if rng.random() < 0.5:
        key, answer = pick(rng, tuple(facts.WHAT.items()))
        return [(say(rng, "(what is {k}|can you explain what {k} is|please tell me what {k} is|do you know what {k} is)?", k=key), answer)]
    key, answer = pick(rng, tuple(facts.WHY.items()))
    low = key[0].lower() + key[1:]
    return [(say(rng, "({k}?|can you tell me {q}?|please explain: {q}?|{k}, please?|I wonder: {q}?)", k=key, q=low), answer)]


def food(rng: random.Random) -> list[Exchange]:
    """Fruit or vegetable, taste, what to cook."""
    name, (kind, taste) = pick(rng, tuple(facts.FOODS.items()))
    kinds = [
        ("is {f} a fruit or a vegetable?", "{f} is a {kind}."),
        ("(what does {f} taste like|how does {f} taste)?", "{f} tastes {taste}."),
        ("(is {f} healthy|is {f} good for me)?", "yes, {f} is (healthy|good for you)."),
        ("(what should I cook (today|tonight|for dinner)|what can I eat for (lunch|dinner|breakfast)|can you suggest something to eat)?", "(how about|you could make|maybe you would like) {dish} (with {side}|and {side}|)."),
        ("(what is your favourite food|do you like {dish})?", "I cannot eat, but (people say that {dish} is very good|{dish} sounds good to me)."),
    ]  # fmt: skip
    question, answer = pick(rng, kinds)
    dish = pick(rng, ("soup", "pancakes", "rice", "pasta", "an omelette", "roast vegetables", "baked potatoes", "fish", "porridge"))
    dish = {"pancakes": "a pancake", "baked potatoes": "a baked potato", "roast vegetables": "vegetable pie"}.get(dish, dish)
    side = pick(rng, ("salad", "bread", "beans", "carrots", "fruit", "cheese"))
    slots = {"f": name, "kind": kind, "taste": taste, "dish": dish, "side": side}
    return [(say(rng, question, **slots), say(rng, answer, **slots))]


NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def arithmetic(rng: random.Random) -> list[Exchange]:
    """Small sums, written with digits or words, or as a tiny story."""
    turns = []
    for _ in range(rng.choice((1, 1, 2))):
        x, y = rng.randint(0, 12), rng.randint(0, 12)
        op = pick(rng, ("plus", "plus", "minus", "times"))
        if op == "minus":
            x, y = max(x, y), min(x, y)
        if op == "times":
            x, y = rng.randint(0, 10), rng.randint(0, 10)
        value = {"plus": x + y, "minus": x - y, "times": x * y}[op]
        sign = {"plus": "+", "minus": "-", "times": "x"}[op]
        if rng.random() < 0.25 and value <= 12:
            turns.append((say(rng, "(what is|how much is) {x} {op} {y}?", x=NUMBERS[x], op=op, y=NUMBERS[y]), say(rng, "{x} {op} {y} is {v}.", x=NUMBERS[x], op=op, y=NUMBERS[y], v=NUMBERS[value])))
        else:
            shown = pick(rng, (f"{x} {op} {y}", f"{x} {sign} {y}"))
            turns.append((say(rng, "(what is|how much is|can you tell me|calculate|what's) {s}?", s=shown), say(rng, "{x} {op} {y} is {v}.", x=x, op=op, y=y, v=value)))
    return turns


def word_problem(rng: random.Random) -> list[Exchange]:
    """Someone has some things and gets or loses some."""
    x, y = rng.randint(2, 10), rng.randint(1, 9)
    things = pick(rng, ("apples", "books", "coins", "pencils", "cakes", "flowers", "eggs", "marbles"))
    name = pick(rng, GIRLS + BOYS)
    if rng.random() < 0.5 or y >= x:
        value, verb, how = x + y, pick(rng, ("gets", "buys", "finds")), "+"
    else:
        value, verb, how = x - y, pick(rng, ("eats", "loses", "gives away", "sells")), "-"
    if verb == "eats" and things not in ("apples", "cakes", "eggs"):
        verb = "loses"
    question = f"{name} has {x} {things} and {verb} {y}{' more' if how == '+' else ''}. How many {things} does {name} have{' now' if rng.random() < 0.5 else ''}?"
    noun = things if value != 1 else things[:-1]
    return [(question, say(rng, "{n} has {v} {t}( now||), because {x} {w} {y} is {v}.", n=name, v=value, t=noun, x=x, y=y, w="plus" if how == "+" else "minus"))]


def calendar(rng: random.Random) -> list[Exchange]:
    """Days and months in order, counts of them."""
    names, what = (facts.DAYS, "day") if rng.random() < 0.5 else (facts.MONTHS, "month")
    index = rng.randrange(len(names))
    kinds = [
        (f"(which {what} comes after|what {what} is after|what comes after) {names[index]}?", f"{names[(index + 1) % len(names)]} comes after {names[index]}."),
        (f"(which {what} comes before|what {what} is before|what comes before) {names[index]}?", f"{names[index - 1]} comes before {names[index]}."),
        ("how many days are (there in|in) a week?", "there are seven days in a week."),
        ("how many months are (there in|in) a year?", "there are twelve months in a year."),
        ("(what are|name|list) the days of the week(.|?)", f"the days of the week are {listing(facts.DAYS)}."),
        ("(what are|name|list) the (four |)seasons(.|?)", "the four seasons are spring, summer, autumn and winter."),
        ("how many (hours are in a day|hours does a day have)?", "a day has twenty-four hours."),
    ]  # fmt: skip
    question, answer = pick(rng, kinds[:2] if rng.random() < 0.6 else kinds)
    return [(say(rng, question), say(rng, answer))]


def counting(rng: random.Random) -> list[Exchange]:
    """Count, compare, spell."""
    kind = rng.random()
    if kind < 0.3:
        last = rng.randint(3, 12)
        return [(say(rng, "(count to|can you count to|please count to) {n}(.|?)", n=last), ", ".join(str(i) for i in range(1, last + 1)) + ".")]
    if kind < 0.65:
        x, y = rng.sample(range(1, 100), 2)
        word = pick(rng, ("bigger", "larger", "smaller"))
        value = min(x, y) if word == "smaller" else max(x, y)
        return [(say(rng, "which (number |)is {w}, {x} or {y}?", w=word, x=x, y=y), f"{value} is {word} than {x + y - value}.")]
    order = ("ant", "mouse", "cat", "dog", "sheep", "horse", "elephant", "whale")
    i, j = rng.sample(range(len(order)), 2)
    word = pick(rng, ("bigger", "smaller"))
    winner = max(i, j) if word == "bigger" else min(i, j)
    return [(say(rng, "(which is|what is) {w}, {x} or {y}?", w=word, x=a(order[i]), y=a(order[j])), say(rng, "{x} is {w} than {y}.", x=a(order[winner]), w=word, y=a(order[i + j - winner])))]


def fun(rng: random.Random) -> list[Exchange]:
    """A joke, or a riddle with its answer in the next turn."""
    if rng.random() < 0.5:
        return [(say(rng, "(tell me a joke|do you know a joke|make me laugh|can you tell me a joke|say something funny)(.|, please.|?||)"), pick(rng, facts.JOKES))]
    riddle, answer = pick(rng, facts.RIDDLES)
    guess = say(rng, "(I do not know|I don't know|no idea|what is the answer|I give up)(.|!|?)") if rng.random() < 0.6 else say(rng, "(is it|) {x}?", x=answer)
    reply = say(rng, "it is {x}!", x=answer) if "Is it" not in guess and answer not in guess.lower() else say(rng, "(yes|that is right|correct), it is {x}!", x=answer)
    return [(say(rng, "(tell me a riddle|do you know a riddle|give me a riddle|ask me a riddle)(.|, please.|?)"), riddle), (guess, reply)]


def story(rng: random.Random) -> list[Exchange]:
    """A story on request, often about a given hero or thing, sometimes with questions about it."""
    please = "(tell me|can you tell me|please tell me|I would like to hear|write|make up|I want)"
    kind = rng.random()
    about, wanted = "", {}
    if kind < 0.4:
        wanted["kind"] = pick(rng, tuple(ANIMALS))
        about = " about " + a(wanted["kind"])
        if rng.random() < 0.35:
            wanted["friend_kind"] = pick(rng, [k for k in ANIMALS if k != wanted["kind"]])
            about += " and " + a(wanted["friend_kind"])
    elif kind < 0.6:
        wanted["kind"], names = pick(rng, (("girl", GIRLS), ("boy", BOYS)))
        wanted["name"] = pick(rng, names)
        about = f" about a {wanted['kind']} (named|called) {wanted['name']}"
    elif kind < 0.75:
        wanted["thing"] = pick(rng, THINGS)
        about = " about " + a(wanted["thing"])
    tale = make_story(rng, **wanted)
    end = "?" if kind > 0.9 else "(.|, please.)"
    request = say(rng, please + " a (short |little |nice |)(bedtime |)story" + about + end)
    if rng.random() < 0.1:
        request = say(rng, "(a story" + about + ", please.|story" + about + "|do you know a story" + about + "?|another story please|one more story, please.)")
        if "other" in request or "more" in request:
            tale = make_story(rng)
    turns = [(request, tale.text)]
    questions = [
        ("(what was the name of the {k}|who was the {k}|what was the {k} called)?", "the (name of the {k} was {n}|{k} was called {n})."),
        ("(where did {n} live|where was the home of {n})?", "{n} lived in {home}."),
        ("(who was the story about|who is the story about)?", "the story (was|is) about {ak} called {n}."),
        ("(who helped {n}|who was the friend of {n}|who did {n} meet)?", "it was {friend}."),
        ("(what was {n} like|how was {n})?", "{n} was {trait}."),
    ]  # fmt: skip
    slots = {"k": tale.hero.kind, "ak": a(tale.hero.kind), "n": tale.hero.name, "home": tale.hero.home, "friend": tale.friend, "trait": tale.hero.trait}
    for question, answer in rng.sample(questions, rng.choice((0, 0, 0, 1, 2))):
        turns.append((say(rng, question, **slots), say(rng, answer, **slots)))
    return turns


TOPICS: tuple[tuple[Callable[[random.Random], list[Exchange]], int], ...] = (
    (identity, 12), (story, 26), (animals, 10), (colours, 5), (facts_tables, 12), (what_and_why, 6), (food, 5),
    (arithmetic, 6), (word_problem, 3), (calendar, 4), (counting, 4), (fun, 4), (likes, 7), (wellbeing, 5),
    (how_are_you, 3), (thanks, 2), (greeting, 4), (unknown, 4),
)  # fmt: skip


def conversation(rng: random.Random) -> Dialogue:
    """One to four topics, often with a greeting first and thanks or a goodbye last."""
    exchanges = greeting(rng) if rng.random() < 0.3 else []
    topics, weights = zip(*TOPICS, strict=True)
    for topic in rng.choices(topics, weights, k=rng.choice((1, 1, 1, 2, 2, 3, 4))):
        exchanges += topic(rng)
    if rng.random() < 0.15:
        exchanges += thanks(rng)
    if rng.random() < 0.12:
        exchanges += goodbye(rng)
    dialogue: Dialogue = [("system", pick(rng, SYSTEM))] if rng.random() < 0.1 else []
    for user, assistant in exchanges:
        dialogue += [("user", _untidy(rng, user)), ("assistant", assistant)]
    return dialogue


def _untidy(rng: random.Random, text: str) -> str:
    """People do not always write capitals and full stops."""
    if rng.random() < 0.12:
        text = text[:1].lower() + text[1:] if not text.startswith("I ") else text
    if rng.random() < 0.1:
        text = text.rstrip(".?!")
    return text


def everyday_dialogues(count: int, *, seed: int = 2) -> Iterator[Dialogue]:
    """`count` conversations; the same seed gives the same conversations."""
    rng = random.Random(seed)
    for _ in range(count):
        yield conversation(rng)
