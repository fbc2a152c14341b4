"""Continue a text piece by piece, and stop it from another thread.

    python examples/streaming.py [BUNDLE]

The first answer is read to its end. The second is cut off by `model.cancel()`, which works from any
thread and takes effect within one token; the text so far is kept.
"""

from __future__ import annotations

import sys
import threading

import edgert
from edgert.demo import demo_bundle


def show(stream: edgert.Stream) -> None:
    """Print the pieces as they come, then how the answer ended."""
    with stream:
        for piece in stream:
            print(piece, end="", flush=True)
    result = stream.result
    speed = result.timings.generation_tps
    print(f"\n[{result.finish_reason}, {len(result.token_ids)} tokens, {speed:.0f} a second]")


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else demo_bundle()
    with edgert.load(path) as model:
        show(model.stream("Once upon a time", max_tokens=48, temperature=0.8, top_p=0.9, seed=1))

        story = model.stream("The little dog", max_tokens=800, temperature=0.8, seed=2)
        print(next(story), end="")  # it has begun
        clock = threading.Timer(0.02, model.cancel)
        clock.start()
        show(story)
        clock.join()


if __name__ == "__main__":
    main()
