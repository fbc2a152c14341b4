"""How the demo model should be sampled: what its checkpoint's `generation_config.json` rests on.

    python -m benchmarks.demo_advice

A line a setting. facts: share of answers that hold the right word, 13 simple questions, 8 seeds.
distinct: different runs of four words among all, plain text of 150 tokens after six beginnings, 3
seeds (1: nothing repeats); the worst of the 18 beside the mean.
"""

from __future__ import annotations

from typing import Any

from edgert.api import load
from edgert.demo import demo_bundle
from edgert.text.model import TextModel

FACTS = {
    "What colour is the sky?": ("blue",),
    "What does a cow eat?": ("grass",),
    "What is 3 plus 4?": ("7", "seven"),
    "What is 10 minus 2?": ("8", "eight"),
    "What is the capital of France?": ("Paris",),
    "How many legs does a spider have?": ("eight", "8"),
    "How many days are in a week?": ("seven", "7"),
    "Why do we sleep?": ("rest",),
    "What is the opposite of hot?": ("cold",),
    "What sound does a dog make?": ("woof", "bark"),
    "What is a banana?": ("fruit",),
    "Who are you?": ("edgert",),
    "Can you see me?": ("no",),
}
BEGINNINGS = (
    "The old house stood",
    "Once upon a time",
    "London is a city",
    "The history of the",
    "My father was",
    "A river is",
)
SETTINGS: tuple[dict[str, float], ...] = (
    {"temperature": 0.0},
    {"temperature": 0.0, "repeat_penalty": 1.1},
    {"temperature": 0.5, "top_p": 0.9},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 0.6, "top_p": 0.9, "repeat_penalty": 1.1},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.7, "top_p": 0.9, "repeat_penalty": 1.1},
    {"temperature": 0.7, "min_p": 0.05},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.9},
)


def facts(model: TextModel, options: dict[str, Any], seeds: int) -> float:
    """Share of right answers."""
    right = [
        any(word in _answer(model, question, options, seed) for word in map(str.lower, words))
        for question, words in FACTS.items()
        for seed in range(seeds)
    ]
    return sum(right) / len(right)


def _answer(model: TextModel, question: str, options: dict[str, Any], seed: int) -> str:
    messages = [{"role": "user", "content": question}]
    return model.chat(messages, max_tokens=40, seed=seed, **options).text.lower()


def distinct(text: str) -> float:
    """Different runs of four words among all."""
    words = text.split()
    runs = [tuple(words[i : i + 4]) for i in range(len(words) - 3)]
    return len(set(runs)) / max(1, len(runs))


def main() -> None:
    with load(demo_bundle()) as model:
        for setting in SETTINGS:
            options: dict[str, Any] = {"top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, **setting}
            seeds = (8, 3) if setting["temperature"] else (1, 1)
            values = [
                distinct(model.generate(text, max_tokens=150, seed=seed, **options).text)
                for text in BEGINNINGS
                for seed in range(seeds[1])
            ]
            print(
                f"{setting}: facts {facts(model, options, seeds[0]):.3f}, distinct "
                f"{sum(values) / len(values):.2f} (worst {min(values):.2f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
