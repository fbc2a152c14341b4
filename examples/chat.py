"""A chat in the terminal that remembers what was said.

    python examples/chat.py [BUNDLE]

Type a question and Enter; an empty line or Ctrl-D ends it. Without a bundle it takes the model in
the package. `conversation()` keeps the tokens of earlier turns: each turn reads what is new only.
"""

from __future__ import annotations

import sys

import edgert
from edgert.demo import demo_bundle


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else demo_bundle()
    with edgert.load(path) as model:
        chat = model.conversation()
        while True:
            try:
                question = input("> ").strip()
            except EOFError:
                break
            if not question:
                break
            try:
                with chat.stream(question, max_tokens=200, temperature=0) as stream:
                    for piece in stream:
                        print(piece, end="", flush=True)
            except edgert.RequestError as error:  # the conversation is full, for one
                print(f"{error}", file=sys.stderr)
                break
            usage = stream.result.usage
            print(f"\n[{usage.completion_tokens} tokens, {usage.cached_tokens} read before]")


if __name__ == "__main__":
    main()
