"""Prompts of the speculation benchmark, and the texts that copying and editing ask for."""

from __future__ import annotations

from typing import NamedTuple

PARAGRAPH = (
    "The little harbour lay at the foot of the hill, and every morning the boats came in with the "
    "tide. Old Martin counted the baskets on the stones, wrote the numbers in a brown book, and "
    "sent the boys up to the market with two carts. On Friday the wind turned to the north, the "
    "sea grew dark, and nobody went out. The women mended nets in the long shed while the children "
    "played at being captains. By evening the rain had stopped and a thin moon stood over the "
    "chapel."
)
CODE = '''def area(width, height):
    """The area of a field."""
    total = width * height
    return total


def border(width, height):
    """The length of its fence."""
    total = 2 * width + 2 * height
    return total


def price(width, height, cost):
    """What the field costs."""
    total = area(width, height) * cost
    return total
'''
RECORDS = "".join(
    f"name: {name}, age: {age}, city: {city}, pet: {pet}\n"
    for name, age, city, pet in (
        ("Anna Field", 34, "Norwich", "dog"), ("Peter Stone", 27, "York", "cat"),
        ("Maria Hill", 45, "Leeds", "bird"), ("John Brook", 31, "Bath", "dog"),
        ("Susan Wood", 52, "Derby", "fish"), ("Tom Baker", 19, "Hull", "cat"),
    )
)  # fmt: skip


class Prompt(NamedTuple):
    """What is asked. answer: the text that is to come, where the model would not find it."""

    kind: str
    name: str
    text: str
    answer: str = ""


def _said(kind: str, *questions: str) -> list[Prompt]:
    return [Prompt(kind, f"{kind}{i}", question) for i, question in enumerate(questions)]


def _asked(kind: str, name: str, order: str, text: str, answer: str) -> Prompt:
    return Prompt(kind, name, f"{order}\n\n{text}", answer)


PROMPTS = [
    *_said(
        "chat",
        "What is a llama, and what do people keep it for?",
        "I have a headache and it rains. What can I do this afternoon?",
        "How do bees make honey?",
    ),
    *_said(
        "story",
        "Tell me a short story about a fox.",
        "Tell me a story about a lost red ball and a kind dog.",
        "Tell me a story about two sisters and a boat.",
    ),
    *_said(
        "think",
        "Tom has 5 apples. He buys 7 more and gives 4 to Anna. How many apples does Tom have?",
        "A train leaves at 9 and drives 60 km an hour. How far is it at 12?",
    ),
    _asked(
        "edit", "rename", "Rename total to result.", CODE, CODE.replace("total", "result")
    ),
    _asked(
        "edit", "units", "Change every city to upper case.", RECORDS,
        "".join(
            line.replace(line.split("city: ")[1].split(",")[0],
                         line.split("city: ")[1].split(",")[0].upper()) + "\n"
            for line in RECORDS.splitlines()
        ),
    ),
    _asked("edit", "past", "Replace Martin by Robert and Friday by Monday.", PARAGRAPH,
           PARAGRAPH.replace("Martin", "Robert").replace("Friday", "Monday")),
    _asked("copy", "paragraph", "Repeat this text.", PARAGRAPH, PARAGRAPH),
    _asked("copy", "code", "Repeat this code.", CODE, CODE),
    _asked("copy", "records", "Repeat these records.", RECORDS, RECORDS),
]  # fmt: skip
