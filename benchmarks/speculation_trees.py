"""Whether token trees could pay: what a head's likeliest guesses would be worth in a tree.

    python -m benchmarks.speculation_trees MODEL-WITH-HEAD.edge [--tokens 160] [--temperature 0]

For every place of the model's own answers the rank of the true token among the head's guesses is
looked up, behind a true prefix of 0, 1, 2 .. guesses. A tree whose node at depth d is the k-th
guess of its parent is reached with the product of p(d, k) along its path; the tree of n nodes with
the largest sum is found by taking the largest products in turn, which no tree of n nodes that is
the same at every place can beat. Beside it a chain of n nodes, and both speeds by the costs of a
step of n + 1 rows and of a guess: a chain asks the head n times, a tree once a depth, with as many
rows as the depth has parents, which is counted as one guess (a bound in the tree's favour).
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import edgert
from benchmarks.machine import describe, load_average
from benchmarks.speculation import LONG, head_ms, short, tokens_of, widths
from benchmarks.speculation_prompts import PROMPTS
from edgert.session.base import Feed
from edgert.text.model import TextModel
from edgert.text.speculative.verify import Verify

RESULTS = Path(__file__).parent / "results" / "speculation_trees.jsonl"
DEPTHS, RANKS, NODES = 7, 8, 16
VERIFY: Verify = "coupled"


def ranks(model: TextModel, tokens: list[int], start: int, options: dict[str, Any]) -> Any:
    """Counts [DEPTHS, RANKS + 1]: of the true token at depth d, behind true guesses, its rank among
    the head's guesses (the last column: behind all of these). tokens: prompt and answer; guesses
    are those of places from `start` on, ordered as the request's own numbers order them."""
    head, session = model.drafting.head(), model.session
    state = session.new_state(len(tokens))
    kept = []
    for at in range(0, len(tokens), session.max_rows):
        piece = np.asarray(tokens[at : at + session.max_rows], np.int32)
        (result,) = session.step([Feed(state, piece, "none", taps=head.taps)])
        state.commit(len(piece))
        kept.append(np.concatenate([result.taps[name] for name in head.taps], axis=1))
    state.close()
    features, found = np.concatenate(kept), np.zeros((DEPTHS, RANKS + 1), np.int64)
    params = model.checked_params(options).resolved({})
    guesser = head.proposer(params, verify=VERIFY, controller=None)
    blank = np.zeros((1, head.width), np.float32)
    state = head.session.new_state(len(tokens))
    for place in range(len(tokens) - 2):
        text = tokens[: place + 2]
        feed = head.feed(state, features[place : place + 1], blank, tokens[place + 1 : place + 2])
        (result,) = head.session.step([feed])
        state.commit(1)
        if place + 2 < start:
            continue
        for depth in range(min(DEPTHS, len(tokens) - place - 2)):
            true = tokens[place + 2 + depth]
            found[depth, _rank(guesser, result.logits[0], text, true)] += 1
            text = [*text, true]
            feed = head.feed(state, 0 * features[:1], result.taps["next"][-1:], [true])
            (result,) = head.session.step([feed])
            state.commit(1)
        state.rewind(place + 1)
    state.close()
    return found


def _rank(guesser: Any, logits: NDArray[np.float32], text: list[int], true: int) -> int:
    """Of a token among the guesses that would be made one after the other; RANKS: none of these."""
    row = guesser.full_row(logits).copy()
    for rank in range(RANKS):
        token = guesser.sampler.pick(row, text)
        if token == true:
            return rank
        row[token] = -np.inf
    return RANKS


def best_tree(shares: NDArray[np.float64], nodes: int) -> list[tuple[float, int, int]]:
    """The nodes of largest reach: (reach, depth, rank), in the order in which they are taken."""
    waiting = [(-shares[0, rank], 0, rank) for rank in range(RANKS)]
    heapq.heapify(waiting)
    taken = []
    while waiting and len(taken) < nodes:
        reach, depth, rank = heapq.heappop(waiting)
        taken.append((-reach, depth, rank))
        if depth + 1 < len(shares):
            for below in range(RANKS):
                heapq.heappush(waiting, (reach * shares[depth + 1, below], depth + 1, below))
    return taken


def compared(shares: NDArray[np.float64], costs: dict[str, Any]) -> list[dict[str, Any]]:
    """Chain and tree of each number of nodes whose step was measured."""
    lines = []
    for nodes in range(1, NODES + 1):
        cost = costs.get(f"v{nodes + 1}")
        if cost is None:
            continue
        tree = best_tree(shares, nodes)
        depth = max(depth for _, depth, _ in tree) + 1
        line = {
            "nodes": nodes, "depth": depth, "v": cost,
            "tree_tau": 1 + sum(reach for reach, _, _ in tree),
        }  # fmt: skip
        line["tree_speed"] = line["tree_tau"] / (cost + depth * costs["c_head"])
        if nodes <= DEPTHS:
            line["chain_tau"] = 1 + float(np.cumprod(shares[:nodes, 0]).sum())
            line["chain_speed"] = line["chain_tau"] / (cost + nodes * costs["c_head"])
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="a bundle with a draft head")
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--temperatures", type=float, nargs="*", default=[0.0, 0.7, 1.0])
    args = parser.parse_args()
    with edgert.load(args.model, threads=1, draft="none") as model:
        costs: dict[str, Any] = dict(widths(model))
        costs["c_head"] = head_ms(model) / costs["t1_ms"]
        lines = []
        for temperature in args.temperatures:
            options = {"temperature": temperature, "top_p": 1.0, "seed": 7, "logit_bias": LONG}
            kinds: dict[str, Any] = {}
            for prompt in [prompt for prompt in PROMPTS if not prompt.answer]:
                ids = tokens_of(model, prompt)
                answer = model.generate(ids, draft="none", max_tokens=args.tokens, **options)
                found = ranks(model, [*ids, *answer.token_ids], len(ids), options)
                kinds[prompt.kind] = kinds.get(prompt.kind, 0) + found
            kinds["all"] = sum(kinds.values())
            for kind, counts in kinds.items():
                shares = counts[:, :RANKS] / np.maximum(counts.sum(1, keepdims=True), 1)
                line = {
                    "temperature": temperature, "kind": kind, "places": int(counts[0].sum()),
                    "shares": np.round(shares[:3], 4).tolist(),
                    "rows": [short(row) for row in compared(shares, costs)],
                }  # fmt: skip
                print(json.dumps(line), flush=True)
                lines.append(line)
    head = {"machine": describe(), "load": load_average(), "time": time.strftime("%F")}
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(head | {"costs": costs, "lines": lines}) + "\n")


if __name__ == "__main__":
    main()
