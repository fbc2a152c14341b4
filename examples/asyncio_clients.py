"""Several clients of one model in an asyncio program.

    python examples/asyncio_clients.py [BUNDLE]

The event loop never waits for the model: the answers are computed together in the background, and a
task that is cancelled stops its own.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import edgert
from edgert.demo import demo_bundle

QUESTIONS = ("What is a llama?", "Tell me about the sea.", "Who are you?")


async def client(model: edgert.TextModel, question: str) -> str:
    pieces = []
    async for piece in model.astream_chat(
        [{"role": "user", "content": question}], max_tokens=24, temperature=0
    ):
        pieces.append(piece)
    return "".join(pieces)


async def main(bundle: Path) -> None:
    with edgert.load(bundle) as model:
        answers = await asyncio.gather(*(client(model, question) for question in QUESTIONS))
        for question, answer in zip(QUESTIONS, answers, strict=True):
            print(f"{question} -> {answer.strip()}")
        late = asyncio.create_task(client(model, "Tell me a very long story."))
        await asyncio.sleep(0.01)
        late.cancel()
        (end,) = await asyncio.gather(late, return_exceptions=True)
        print("cancelled:", type(end).__name__)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else demo_bundle()))
