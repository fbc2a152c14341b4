"""Small talk for the everyday dialogues: greetings, who the assistant is, feelings, thanks.

Every function draws one exchange or a few, as (user, assistant) pairs.
"""

# One wording per line reads better than wrapped calls, hence no line limit and no formatter here.
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import random

from . import facts
from .grammar import pick, say
from .stories import BOYS, FOODS, GIRLS

Exchange = tuple[str, str]


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
