"""Our own everyday dialogues: small talk, simple facts, arithmetic, story requests; several turns.

Each topic function returns one exchange or a few, as (user, assistant) pairs; `everyday_dialogues`
strings topics into conversations with greetings and goodbyes. Wordings are drawn from a slot grammar.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from . import facts
from .grammar import a, listing, pick, say
from .sources import Dialogue
from .stories import ANIMALS, BOYS, FOODS, GIRLS, THINGS, make_story

Exchange = tuple[str, str]

SYSTEM = (
    "You are edgert's demo model, a small and friendly assistant.",
    "You are a helpful assistant. Answer in short, simple sentences.",
    "You are a friendly assistant who likes stories.",
    "You are edgert's demo model.",
)


def greeting(rng: random.Random) -> list[Exchange]:
    """Hello and hello."""
    if rng.random() < 0.2:
        name = pick(rng, GIRLS + BOYS)
        hello = say(rng, "(hello|hi|hey|good morning), (I am|my name is|I'm) {name}(.|!)", name=name)
        reply = say(rng, "(hello|hi), {name}! (nice to meet you.|It is nice to meet you.|How are you today?|How can I help you?)", name=name)
        turns = [(hello, reply)]
        if rng.random() < 0.5:
            turns.append((say(rng, "(what is my name|do you remember my name|who am I)?"), say(rng, "Your name is {name}.", name=name)))
        return turns
    hello = say(rng, "(hello|hi|hey|good morning|good evening|good afternoon|hello there|hi there)(.|!||, how are you?|! how are you?|, how are you today?|! how is it going?)")
    if "how" in hello.lower():
        return [(hello, say(rng, "(hello|hi)! (I am fine, thank you|I am doing well, thank you|I am very well, thanks). (How are you?|And you?|How can I help you today?|What would you like to talk about?)"))]
    return [(hello, say(rng, "(hello|hi|hello there)! (How can I help you?|How can I help you today?|How are you today?|What would you like to talk about?|What can I do for you?)"))]


def wellbeing(rng: random.Random) -> list[Exchange]:
    """The user says how they feel."""
    feeling = pick(rng, tuple(facts.ADVICE))
    return [(say(rng, "(I am|I'm|I feel) (|so |very |a little |a bit ){feeling}( today||| right now).", feeling=feeling), pick(rng, facts.ADVICE[feeling]))]


def how_are_you(rng: random.Random) -> list[Exchange]:
    """Courtesy."""
    turns = [(say(rng, "how are you( today| doing|)?"), say(rng, "(I am fine, thank you|I am doing well, thank you|very well, thanks). (How are you?|And how are you?|What about you?)"))]
    if rng.random() < 0.6:
        good = rng.random() < 0.7
        reply = "(I am fine too|I am good|good, thanks|I am well|pretty good)." if good else "(not so good|I am tired|not very well|a bit sad today)."
        answer = "(I am glad to hear that|That is good to hear|Wonderful)(.|!) (What would you like to do?|How can I help you?|)" if good else "I am sorry to hear that. (Do you want to talk about it?|I hope it gets better soon.|Maybe a story would help?)"
        turns.append((say(rng, reply), say(rng, answer)))
    return turns


IDENTITY: tuple[tuple[str, str], ...] = (
    ("(who are you|what are you|tell me about yourself|can you introduce yourself)(?||?)", "I am edgert's demo model, a small (language model|assistant) that (runs on your own computer|can chat and tell short stories)."),
    ("(what is your name|what's your name|do you have a name|what should I call you)?", "(I am called|my name is|you can call me) edgert's demo model."),
    ("are you (a human|a person|real|human|alive)?", "no, I am (a computer program|not a person). I am (edgert's demo model|a small language model)."),
    ("are you (a robot|a computer|an AI|a machine|a program)?", "(yes|in a way, yes). I am a small language model called edgert's demo model."),
    ("(what can you do|how can you help me|what are you good at|what do you do)?", "I can (chat with you|talk about everyday things), answer simple questions and tell (short|little) stories. (I am small, so I make mistakes.|)"),
    ("(who made you|who trained you|where do you come from|who created you)?", "I was trained (by|as part of) the edgert project(, from open texts|)."),
    ("(how old are you|when were you born|when is your birthday)?", "I am a program, so I have no age( like people do|)."),
    ("(where do you live|where are you)?", "I live (in your computer|inside the computer that runs me)."),
    ("(do you have (feelings|a family|friends|a body)|can you feel things)?", "no, I am only a program(, but I like to talk with people|. I can still talk with you|)."),
    ("(can you see me|can you hear me|do you know where I am)?", "no, I (can only read what you write|only see the words that you write)."),
    ("(do you know everything|are you smart|are you clever|are you always right)?", "no, I am a (very |)small model. I know a few simple things, and I (can be wrong|make mistakes)."),
    ("(can you use the internet|can you look things up|what is the news today|can you search the web)?", "no, I cannot (use the internet|look things up). I only know what I have learned."),
    ("(what time is it|what is the date today|what day is it today)?", "I (am sorry, but I |)do not have a clock, so I cannot tell you."),
    ("(what is the weather like today|will it rain tomorrow|is it going to rain|is it cold outside)?", "I cannot see the weather(, but you can look out of the window|. Please look outside|)."),
    ("(do you sleep|do you eat|are you hungry|are you tired)?", "no, I am a program, so I do not (eat or sleep|need food or sleep)."),
    ("(do you like (music|books|stories|animals|people)|what do you like)?", "I like (stories|words|talking with people)( most of all|). (What do you like?|And you?|)"),
    ("(do you speak (French|German|Spanish|other languages)|what languages do you speak)?", "I only speak English."),
)  # fmt: skip


def identity(rng: random.Random) -> list[Exchange]:
    """Who and what the assistant is, and what it cannot do."""
    return [(say(rng, q), say(rng, r)) for q, r in rng.sample(IDENTITY, rng.choice((1, 1, 2)))]


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
        lambda: table(rng, {v: k for k, v in facts.JOBS.items()}, "who {k}?|(what do you call a person who|what is the name of someone who) {k}?".replace("|(", "|(", 1).split("|", 1)[1], "{av} {k}."),
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


def unknown(rng: random.Random) -> list[Exchange]:
    """Questions a small model cannot answer, and an honest reply."""
    thing = pick(rng, ("quantum physics", "the stock market", "tax law", "rocket engines", "my computer's error", "the history of Rome", "French grammar", "chemistry", "politics"))
    name = f"{pick(rng, GIRLS + BOYS)} {pick(rng, ('Miller', 'Brown', 'Hill', 'Stone', 'Garcia', 'Novak', 'Berg'))}"
    question = say(rng, "(who is {n}|do you know {n}|who won the (match|race|election) (yesterday|last year|in {y})|what happened in {y}|how much does (a house|a car|a plane ticket) cost|what is {d} times {y}|write a computer program|can you explain {t}|tell me about {t}|what is the phone number of {n}|how many people live in (this town|my street))?", n=name, y=rng.randint(1500, 2030), d=rng.randint(13, 99), t=thing)
    return [(question, say(rng, "(I am sorry, I do not know that|I do not know that, sorry|sorry, I do not know|that is too difficult for me). (I am only a small model.|I only know simple things.|)"))]


def likes(rng: random.Random) -> list[Exchange]:
    """The user says what they like or did; the assistant answers in kind."""
    thing = pick(rng, ("reading", "football", "music", "drawing", "cooking", "swimming", "gardening", "dancing", "painting", "chess", "walking", "singing"))
    name, pet = pick(rng, GIRLS + BOYS), pick(rng, ("cat", "dog", "rabbit", "horse", "bird", "mouse"))
    kinds = [
        ("I (like|love|really like|enjoy) {t}.", "(that is nice|how nice|{t} is fun)! (How long have you been doing it?|What do you like most about it?|Do you do it often?)"),
        ("I have a (|little |big |new )(brother|sister|friend) called {n}.", "(that is nice|how nice)! (What does {n} like to do?|How old is {n}?)"),
        ("I have a {p}(| called {n}).", "(how nice|lovely)! (I like {p}s|a {p} is a good friend). (What does it like to eat?|How old is it?|)" if pet != "mouse" else "how nice! What does it like to eat?"),
        ("I (went to|was at) (the park|the beach|school|the market|the library) (today|yesterday).", "(that sounds nice|how was it|did you have a good time)(?|?)"),
        ("(I ate|today I had) {f} (for lunch|for breakfast|for dinner).", "(that sounds good|yum|nice)! (Was it good?|Did you make it yourself?|)"),
        ("it is my birthday( today|)(.|!)", "happy birthday! (I hope you have a wonderful day.|Have a lovely day!|)"),
        ("(it is raining|it is snowing|it is sunny|it is windy|it is very hot)( today| outside|).", "(then|in that case) you (could stay in and read|should dress well before you go out|could drink some tea)."),
        ("(what should I do today|what can I do this weekend|do you have an idea for today)?", "you could (go for a walk|read a book|visit a friend|bake a cake|draw a picture|try {t})."),
        ("(can you help me|I need help|I have a question)(.|?)", "(of course|sure|yes, gladly)! (What is it?|What do you need?|What would you like to know?)"),
    ]  # fmt: skip
    question, answer = pick(rng, kinds)
    slots = {"t": thing, "n": name, "p": pet, "f": pick(rng, FOODS)}
    reply = say(rng, answer, **slots)
    if reply.startswith("That sounds nice"):
        reply = "That sounds nice."
    return [(say(rng, question, **slots), reply)]


def thanks(rng: random.Random) -> list[Exchange]:
    """Thank you, well done."""
    if rng.random() < 0.3:
        return [(say(rng, "(you are (nice|funny|clever|kind|great)|I like you|good job|well done|great story|that was nice)(.|!)"), say(rng, "thank you! (That is kind of you.|I am glad you think so.|I am happy to hear that.)"))]
    return [(say(rng, "(thank you|thanks|thank you very much|thanks a lot|many thanks)(.|!)"), say(rng, "you are welcome(.|!) (Is there anything else?|I am happy to help.|)"))]


def goodbye(rng: random.Random) -> list[Exchange]:
    """Goodbye and good night."""
    if rng.random() < 0.3:
        return [(say(rng, "(good night|I am going to bed|I have to sleep now)(.|!)"), say(rng, "good night! (Sleep well.|Sweet dreams.)"))]
    return [(say(rng, "(goodbye|bye|see you later|bye bye|I have to go now|see you tomorrow|that is all)(.|!)"), say(rng, "goodbye! (Have a nice day.|See you soon.|It was nice to talk with you.|Take care.)"))]


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
