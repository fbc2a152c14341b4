"""Short everyday stories from a slot grammar: a hero, a place, a trouble, a helper, an ending.

About 10 plots, each with several wordings per sentence and slots drawn from lists, give far more
stories than are ever generated. Sentences are kept short and plain on purpose.
"""

# One wording per line reads better than wrapped calls, hence no line limit and no formatter here.
# ruff: noqa: E501
# fmt: off

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .grammar import a, pick, say

GIRLS = tuple("Lily Mia Anna Rosa Emma Zoe Ada Ella Nora Lucy Ruby Maya Ivy Clara Amina Sofia Grace Hana".split())
BOYS = tuple("Tom Ben Sam Leo Max Jack Omar Finn Noah Hugo Peter Luca Adam Kofi Felix Oscar Ravi Theo".split())
PETS = tuple("Pip Momo Biscuit Coco Dot Pepper Nutmeg Tilly Bramble Sunny Button Rusty Hazel Ollie Poppy Bo".split())
ANIMALS = {
    "cat": "a small house by the river",
    "dog": "a barn near the hills",
    "rabbit": "a cosy hole under a hedge",
    "fox": "a green wood",
    "bear": "a cave in the mountains",
    "mouse": "an old barn",
    "owl": "a tall oak tree",
    "duck": "a quiet pond",
    "frog": "a pond full of lilies",
    "squirrel": "a hollow tree in the park",
    "hedgehog": "a garden behind a blue house",
    "elephant": "a wide valley",
    "turtle": "a small cave by the beach",
    "bird": "a nest in an apple tree",
    "penguin": "a cave of ice by the sea",
    "horse": "a stable at the edge of the village",
    "bee": "a hive near a field of flowers",
    "lion": "the golden grass of the plain",
    "monkey": "a warm forest",
    "sheep": "a meadow on a hill",
    "pig": "a muddy yard",
    "goat": "a shed on a rocky hill",
    "dragon": "a castle on a cliff",
    "robot": "a little workshop in the city",
}
PLACES = (
    "a little village", "a small town by the sea", "a house near the forest", "a busy city",
    "a cottage in the valley", "a yellow house on a hill", "a house with a red door",
)  # fmt: skip
TRAITS = {
    "shy": "brave",
    "curious": "careful",
    "small": "strong in other ways",
    "lazy": "helpful",
    "brave": "kind as well",
    "kind": "happy",
    "clumsy": "patient",
    "quiet": "heard by everyone",
    "proud": "grateful",
    "young": "wiser",
    "lonely": "full of joy",
    "cheerful": "even happier",
}
THINGS = (
    "red ball", "silver key", "blue kite", "old map", "golden bell", "wooden boat", "warm scarf", "little drum",
    "shiny stone", "green hat", "toy train", "brass lamp", "picture book", "paper star", "round mirror",
)  # fmt: skip
FOODS = ("apple pie", "bread", "berries", "pancakes", "soup", "carrots", "honey cakes", "plums", "nuts", "cheese")
SPOTS = ("under a bush", "behind a big rock", "in the tall grass", "on top of a hill", "beside the stream",
         "under the bridge", "in a hollow log", "at the edge of the wood")  # fmt: skip
DAYS = ("one morning", "one day", "one sunny afternoon", "one windy day", "one cold evening", "one rainy day",
        "early one spring day", "on a bright summer day", "on the first day of autumn")  # fmt: skip


@dataclass(frozen=True)
class Hero:
    """Who the story is about; pronouns are given because the sentences need them."""

    name: str
    kind: str  # "girl", "boy" or an animal
    home: str
    trait: str
    he: str
    him: str
    his: str

    @property
    def slots(self) -> dict[str, str]:
        """Slots for the sentences."""
        return {
            "N": self.name, "kind": self.kind, "home": self.home, "trait": self.trait,
            "a_trait": a(self.trait), "he": self.he, "him": self.him, "his": self.his,
            "grown": TRAITS[self.trait],
        }  # fmt: skip


def make_hero(rng: random.Random, *, kind: str | None = None, name: str | None = None) -> Hero:
    """A hero of the wanted kind and name, or of a random one."""
    kind = kind or (pick(rng, ("girl", "boy")) if rng.random() < 0.45 else pick(rng, tuple(ANIMALS)))
    female = kind == "girl" or (kind != "boy" and rng.random() < 0.5)
    if name is None:
        name = pick(rng, GIRLS if kind == "girl" else BOYS if kind == "boy" else PETS)
    pronouns = ("she", "her", "her") if female else ("he", "him", "his")
    home = ANIMALS.get(kind) or pick(rng, PLACES)
    return Hero(name, kind, home, pick(rng, tuple(TRAITS)), *pronouns)


OPENINGS = (
    "(Once upon a time|Once|Long ago|Not so long ago), there was {a_trait} {kind} (named|called) {N}. {N} lived in {home}.",
    "(Once upon a time|Once|Long ago), {a_trait} {kind} (named|called) {N} lived in {home}.",
    "{N} was {a_trait} {kind}. {he} lived in {home}.",
    "In {home} there lived {a_trait} {kind}. {his} name was {N}.",
    "There was once {a_trait} {kind} whose name was {N}. {his} home was {home}.",
)
HABITS = (
    "{N} loved (to sing|to play outside|to watch the clouds|to help {his} friends|to look for new things).",
    "Every (day|morning), {N} (went for a walk|ate {food} for breakfast|looked out at the sky|said hello to {his} friends).",
    "(Everyone|All the neighbours) knew {N}, because {he} (always smiled|liked to talk|was always busy).",
    "",
    "",
)
PLOTS: dict[str, tuple[str, ...]] = {
    "lost": (
        "{day}, {N} lost {his} {thing}. {he} looked (everywhere|high and low), but {he} could not find it.",
        "{N} (was very sad|began to cry|did not know what to do). Then {friend} came (by|along) and asked, \"(What is wrong|Why are you sad), {N}?\"",
        "\"I (have lost|cannot find) my {thing},\" said {N}. \"(Do not worry|Do not be sad),\" said {friend}. \"(Let us look together|We will find it).\"",
        "They looked and looked. At last they found the {thing} {spot}. {N} (jumped for joy|smiled and thanked {friend}|gave {friend} a big hug).",
    ),
    "found": (
        "{day}, {N} found {a_thing} {spot}. \"(Whose is this|Who lost this)?\" {he} (asked|wondered).",
        "{N} wanted to keep it, but {he} knew that (it was not {his}|somebody must miss it). So {he} (went|walked) from door to door.",
        "At the last door stood {friend}. \"That is my {thing}!\" said {friend}. \"(I looked for it all day|I thought it was gone for ever).\"",
        "{friend} was so (happy|glad) that they shared {food} together. {N} felt (warm inside|proud and happy).",
    ),
    "storm": (
        "{day}, a (big|great|terrible) storm came. The wind (howled|blew hard) and the rain (fell|came down) for hours.",
        "{N} heard a (small|weak) voice outside. It was {friend}, who was (cold and wet|lost in the dark|too afraid to move).",
        "{N} was afraid too, but {he} (opened the door|ran out into the rain|took a lamp and went out). \"(Come in|Come with me),\" {he} said.",
        "They sat by the fire and ate {food} until the storm was over. In the morning the sun was shining and they were (good friends|the best of friends).",
    ),
    "race": (
        "{day}, there was a race (through the wood|around the lake|up the hill). {N} wanted to win.",
        "(At first {N} was ahead|{N} ran as fast as {he} could). Then {he} saw that {friend} had fallen {spot}.",
        "{N} stopped. \"(Are you hurt|Can you stand), {friend}?\" {he} asked. \"My (foot|leg) hurts,\" said {friend}. {N} helped {friend} to walk.",
        "They came in last, but everyone (clapped|cheered). \"(A good friend is better than a prize|Helping is better than winning),\" said {N}.",
    ),
    "sharing": (
        "{day}, {N} had a (big|whole) basket of {food}. {he} wanted to eat it all (alone|by {him}self).",
        "Then {friend} came by. {friend} had (nothing to eat|had no breakfast and was hungry) and looked at the basket.",
        "{N} thought for a (moment|while). \"(Would you like some|Please have some|Sit down and eat with me),\" {he} said at last.",
        "They ate together and (laughed|talked) until (dark|the sun went down). The {food} tasted (better|much better) when it was shared.",
    ),
    "learning": (
        "{N} wanted to learn how to (swim|sing|dance|climb|whistle|paint). {day}, {he} tried for the first time, but it went (badly|wrong).",
        "\"I will never learn it,\" said {N}. {friend} (smiled|laughed softly) and said, \"(Nobody can do it the first time|Try again tomorrow|Take your time).\"",
        "So {N} tried again and again. (Every day|Each day) it went a little better.",
        "After (a week|many days), {he} could do it. {friend} clapped, and {N} (laughed with joy|felt very proud).",
    ),
    "journey": (
        "{day}, {N} found {a_thing} {spot}. It seemed to point the way to (the far hills|the sea|an old tower).",
        "{N} packed some {food} and set out. On the way {he} met {friend}, who asked, \"(Where are you going|May I come with you)?\"",
        "They walked (all day|for a long time). They crossed a (river|bridge|field) and slept under the stars.",
        "When they came to the end, they found (no gold and no jewels|nothing but a fine view). But they had (seen the world|become friends), and that was (enough|the best treasure of all).",
    ),
    "party": (
        "It was {N}'s birthday, but nobody (said a word|seemed to remember it). {N} (sat alone {spot}|went for a long walk).",
        "Then {friend} came running. \"(Come quickly|Come with me), {N}! I need your help,\" said {friend}.",
        "{N} followed {friend} back home. All {his} friends were there, with {food}, music and {a_thing} as a present.",
        "\"(Happy birthday|Surprise), {N}!\" they (cried|shouted). {N} (laughed and danced all evening|had never been so happy).",
    ),
    "fear": (
        "{N} was afraid of (the dark|deep water|loud noises|high places). {he} never told anyone.",
        "{day}, {friend} (needed help|called for help) {spot}. {N} was (frightened|trembling), but {he} went.",
        "\"(Hold on|Wait for me), {friend}!\" {he} called. Step by step {he} went on, and (at last|in the end) {he} reached {friend}.",
        "\"You are so brave!\" said {friend}. \"I was (afraid|scared),\" said {N}, \"but (I wanted to help you|a friend was in trouble).\"",
    ),
    "garden": (
        "{day}, {N} planted a (small|tiny) seed. {he} gave it water and waited, but nothing happened.",
        "\"(Perhaps it is asleep|Maybe it is a bad seed),\" {N} said to {friend}. \"(Be patient|Good things take time),\" said {friend}.",
        "{N} watered the seed every (morning|day). Then a green leaf came out of the ground, and after it (a tall flower|a little tree).",
        "{N} and {friend} sat in its shade and ate {food}. \"(It was worth the wait|You were right),\" said {N}.",
    ),
}  # fmt: skip
ENDINGS = (
    "From that day on, {N} was {grown}.",
    "After that day, {N} and {friend} (met every week|were always together|never forgot each other).",
    "That night {N} (slept well|fell asleep with a smile).",
    "And they lived happily ever after.",
    "{N} never forgot that day.",
    "The end.",
    "",
)


@dataclass(frozen=True)
class Story:
    """A story and what may be asked about it."""

    text: str
    hero: Hero
    friend: str
    friend_kind: str
    thing: str
    food: str
    plot: str


def make_story(
    rng: random.Random, *, kind: str | None = None, name: str | None = None,
    thing: str | None = None, friend_kind: str | None = None,
) -> Story:  # fmt: skip
    """A story of 6 to 14 sentences about the wanted hero, thing or friend."""
    hero = make_hero(rng, kind=kind, name=name)
    friend_kind = friend_kind or pick(rng, [k for k in ANIMALS if k != hero.kind])
    friend_name = pick(rng, [n for n in PETS + GIRLS + BOYS if n != hero.name])
    friend = pick(rng, (f"{friend_name} the {friend_kind}", f"the {friend_kind}"))
    plots = [p for p, lines in PLOTS.items() if thing is None or "thing}" in " ".join(lines)]
    plot = pick(rng, plots)
    thing, food = thing or pick(rng, THINGS), pick(rng, FOODS)
    slots = {
        **hero.slots, "friend": friend, "thing": thing, "a_thing": a(thing), "food": food,
        "spot": pick(rng, SPOTS), "day": pick(rng, DAYS),
    }  # fmt: skip
    lines = [pick(rng, OPENINGS), pick(rng, HABITS), *PLOTS[plot], pick(rng, ENDINGS)]
    parts = [say(rng, line, **slots) for line in lines if line]
    cut = 2 if len(parts) > 5 else 1
    text = " ".join(parts[:cut]) + "\n" + " ".join(parts[cut:]) if rng.random() < 0.3 else " ".join(parts)
    return Story(text, hero, friend, friend_kind, thing, food, plot)


def everyday_stories(count: int, *, seed: int = 1) -> Iterator[str]:
    """`count` stories as plain documents."""
    rng = random.Random(seed)
    for _ in range(count):
        yield make_story(rng).text
