"""Heads that nobody would train, and interrupts: guesses are those of single steps, or the bundle
is refused when it is opened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edgert
from edgert.errors import BundleError
from edgert.graph import Graph, Node, Value, Weight
from edgert.session.chain import TABLE, TOKENS, Chain
from edgert.text.model import TextModel

from ...hostile.corpus_draft import HEAD, HEAD_IDS, HEAD_WEIGHTS, add_head
from ...hostile.spoil import MANIFEST
from ...tiny import VOCAB, reseal, tiny_bundle, tiny_graph, tiny_weights, write_weights
from .heads import IDS, model_with_head, random_head
from .models import NO_END

Made = tuple[Graph, dict[str, Any]]
GRAPH = tiny_graph()
OPTIONS: tuple[dict[str, Any], ...] = ({"temperature": 0.0}, {"temperature": 0.9, "seed": 3})


def head() -> Made:
    made, held = random_head(GRAPH, tiny_weights(GRAPH))
    return made, dict(held)


def renamed(made: Graph, **names: str) -> Graph:
    """Values of a graph under other names."""
    other = lambda name: names.get(name, name)
    return made.replace(
        inputs=tuple(msgspec.structs.replace(v, name=other(v.name)) for v in made.inputs),
        nodes=tuple(
            msgspec.structs.replace(
                n, inputs=tuple(map(other, n.inputs)), output=other(n.output),
                weights={slot: other(weight) for slot, weight in n.weights.items()},
            )
            for n in made.nodes
        ),
        weights={other(name): weight for name, weight in made.weights.items()},
    )  # fmt: skip


def without_states() -> Made:
    """Its attention is a cut of the queries."""
    made, held = head()
    cut = Node(
        "columns", ("qkv.y",), "cut", attrs={"start": 0, "count": made.weights["o"].shape[1]}
    )
    nodes = list[Node]()
    for node in made.nodes:
        if node.op == "attention":
            node = cut
        elif node.output == "o.y":
            node = msgspec.structs.replace(node, inputs=("cut",))
        nodes.append(node)
    del held["inv_freq"]
    weights = {name: made.weights[name] for name in held}
    return made.replace(nodes=tuple(nodes), states={}, weights=weights, context=128), held


def rows_named_as_tokens() -> Made:
    made, held = head()
    return renamed(made, rows=TOKENS), held


def node_named_as_tokens() -> Made:
    made, held = head()
    return renamed(made, **{"r.y": TOKENS}), held


def weight_named_as_table() -> Made:
    made, held = head()
    return renamed(made, down=TABLE), {TABLE if n == "down" else n: w for n, w in held.items()}


def product_that_is_gated_elsewhere() -> Made:
    """The product of features is read a second time, by a gate."""
    made, held = head()
    wide, width = made.weights["fc"].shape[1], made.weights["norm"].shape[0]
    nodes = list[Node]()
    for node in made.nodes:
        if node.output == "h.y":
            node = msgspec.structs.replace(node, inputs=("sum",))
        elif node.output == "r.y":
            node = msgspec.structs.replace(node, inputs=("gates", node.inputs[1]))
        nodes.append(node)
        if node.output == "g.y":
            last = "g.y"
            for i in range(wide // width - 1):
                nodes.append(Node("concat", (last, "g.y"), f"wide{i}"))
                last = f"wide{i}"
            nodes += [
                Node("linear", (last,), "again", {"weight": "fc"}),
                Node("glu", ("again",), "gated", attrs={"act": "silu"}),
                Node("concat", ("gated", "gated"), "gates"), Node("add", ("g.y", "gates"), "sum"),
            ]  # fmt: skip
    return made.replace(nodes=tuple(nodes)), held


ODD = {
    made.__name__: made
    for made in (
        without_states, rows_named_as_tokens, node_named_as_tokens, weight_named_as_table,
        product_that_is_gated_elsewhere,
    )
}  # fmt: skip


def bundle_of(path: Path, made: Graph, held: Mapping[str, Any], **section: Any) -> Path:
    """A tiny bundle with a head."""
    add_head(tiny_bundle(path))
    (path / HEAD).write_bytes(made.to_json())
    write_weights(path / HEAD_WEIGHTS, made, held)
    draft = json.loads((path / MANIFEST).read_bytes())["draft"]
    reseal(path, draft={**draft, **section})
    return path


def guesses(model: TextModel, options: dict[str, Any]) -> tuple[Sequence[int], int, int]:
    draft = edgert.DraftOptions("head", max_tokens=5, adapt=False)
    got = model.generate("Once upon", max_tokens=60, draft=draft, **options, **NO_END)
    assert got.drafting is not None
    return got.token_ids, got.drafting.proposed, got.drafting.accepted


@pytest.mark.parametrize("name", ODD)
def test_odd_heads_guess_as_their_single_steps_do(tmp_path: Path, name: str) -> None:
    path = bundle_of(tmp_path / "odd.edge", *ODD[name]())
    with edgert.load(path, threads=1) as model:
        maker = model.drafting.head()
        for options in OPTIONS:
            plain = model.generate("Once upon", max_tokens=60, draft="none", **options, **NO_END)
            text, *counts = guesses(model, options)
            chain, maker.chain = maker.chain, None
            text_by_steps, *by_steps = guesses(model, options)
            maker.chain = chain
            assert text == text_by_steps == plain.token_ids
            assert counts == by_steps
            assert counts[0] > 0


def test_ids_that_no_token_has_are_refused(tmp_path: Path) -> None:
    """Logits may be wider than the tokenizer, and all that a head can guess lies past it."""
    graph = tiny_graph(vocab=VOCAB + len(IDS))
    path = tiny_bundle(tmp_path / "wide.edge", graph=graph, weights=tiny_weights(graph))
    add_head(path)
    for first in (VOCAB - 1, VOCAB):
        ids = np.arange(first, first + len(IDS)).astype("<i4")
        (path / HEAD_IDS).write_bytes(ids.tobytes())
        reseal(path)
        if first == VOCAB:
            with pytest.raises(BundleError, match="guesses ids from 260 on"):
                edgert.load(path, threads=1, draft="head")
            return
        with edgert.load(path, threads=1, draft="head") as model:
            assert model.tokenizer.size == VOCAB
            assert len(model.generate("Once upon", max_tokens=20, **NO_END).token_ids) == 20


def test_two_sets_of_rotary_factors_are_refused(tmp_path: Path) -> None:
    made, held = head()
    nodes = tuple(
        msgspec.structs.replace(
            n, weights={**n.weights, "inv_freq_long": "long"}, attrs={**n.attrs, "rope_switch": 20}
        )
        if n.op == "attention"
        else n
        for n in made.nodes
    )
    weights = {**made.weights, "long": made.weights["inv_freq"]}
    path = bundle_of(
        tmp_path / "two.edge", made.replace(nodes=nodes, weights=weights),
        {**held, "long": held["inv_freq"]},
    )  # fmt: skip
    with pytest.raises(BundleError, match="two sets of rotary factors"):
        edgert.load(path, threads=1)


def test_rows_that_no_step_makes_are_refused_when_the_model_is_opened(tmp_path: Path) -> None:
    gated = next(n.inputs[0] for n in GRAPH.nodes if n.op == "glu")
    size = int(GRAPH.shapes()[gated][-1])
    made, held = head()
    width = made.weights["fc"].shape[0]
    made = made.replace(
        inputs=(Value("features", ("T", size)), *made.inputs[1:]),
        weights={**made.weights, "fc": Weight((width, size), "f32")},
    )
    held["fc"] = np.full((width, size), 0.01, np.float32)
    path = bundle_of(tmp_path / "gate.edge", made, held, taps=[gated])
    with pytest.raises(BundleError, match="only exist inside a gated product"):
        edgert.load(path, threads=1, draft="head")


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The next chain of guesses is interrupted as soon as its steps are made."""
    made = Chain.guess

    def guess(self: Chain, *args: Any, **options: Any) -> Any:
        made(self, *args, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Chain, "guess", guess)
        yield


def test_a_wish_that_was_interrupted_is_fulfilled_by_the_next(
    kernel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another caller's, whose guesses the interrupted thread was making."""
    with model_with_head("kv", kernel_folder) as model:
        plain = model.generate("Once upon", max_tokens=30, draft="none", **NO_END).token_ids
        draft = edgert.DraftOptions("head", max_tokens=5, adapt=False)
        stream = model.stream("Once upon", max_tokens=30, draft=draft, **NO_END)
        next(stream)
        with interrupted(monkeypatch), pytest.raises(KeyboardInterrupt):
            stream.finish()
        assert stream.finish().token_ids == plain
