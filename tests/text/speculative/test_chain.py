"""Guesses of a head in one program: those of steps one by one, whatever picks them; and rests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from edgert.kernels.guess import DONE, POOR, UNSURE

from edgert.bundle.draft import embedding_of
from edgert.errors import RequestError
from edgert.graph import Node, Weight
from edgert.session.base import Feed
from edgert.session.chain import LEAST, LONGEST, Chain, Draw, chains, following
from edgert.session.costs import StepCosts
from edgert.session.cpu import CpuSession
from edgert.text.model import TextModel
from edgert.text.speculative.controller import Controller
from edgert.text.speculative.cycle import EVERY, IDLE, Speculation
from edgert.text.speculative.head import HeadModel, chain_of
from edgert.text.speculative.options import DraftOptions
from edgert.text.speculative.proposer import Draft

from ...session.families import family_graph
from ...tiny import EOS
from .heads import IDS, model_with_head
from .models import NO_END
from .test_invariants import PROMPT, assert_nothing_is_held

ASKED: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "sampled": {"temperature": 0.8},
    "top-p": {"temperature": 1.0, "top_p": 0.7},
    "top-k": {"temperature": 1.0, "top_k": 9},
    "min-p, where no draw is certain": {"temperature": 1.0, "min_p": 1.0},
    "biased": {"temperature": 0.7, "logit_bias": {EOS: -100.0, 7: 4.0, 11: -3.0, 250: 1.0}},
    "biased, greedy": {"temperature": 0.0, "logit_bias": {EOS: -100.0, 7: 4.0, 11: 3.0}},
    "an end": {"temperature": 1.0, "stop_token_ids": [int(i) for i in IDS[5:30]]},
    "penalties, which compiled code knows nothing of": {"repeat_penalty": 1.3},
}


@pytest.fixture(scope="module")
def model(kernel_folder: Path) -> Iterator[TextModel]:
    with model_with_head("kv", kernel_folder) as model:
        yield model
        assert_nothing_is_held(model.drafting.head().session)


def _chain(model: TextModel) -> Chain:
    chain = model.drafting.head().chain
    assert chain is not None
    return chain


class Counted:
    """A chain that counts how often it is asked, and for what its guesses ended."""

    def __init__(self, chain: Chain) -> None:
        self._chain, self.ends = chain, list[bool]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._chain, name)

    def guess(self, *args: Any, **options: Any) -> Any:
        found = self._chain.guess(*args, **options)
        self.ends.append(found.unsure is not None)
        return found


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_guesses_are_those_of_steps_one_by_one(model: TextModel, name: str, count: int) -> None:
    options = {"max_tokens": 70, "seed": 5, **NO_END, **ASKED[name]}
    head, draft = model.drafting.head(), DraftOptions("head", max_tokens=count, adapt=False)
    plain = model.generate(PROMPT, draft="none", **options)
    whole = head.chain
    assert whole is not None
    counted = Counted(whole)
    try:
        head.chain = counted  # type: ignore[assignment]
        chained = model.generate(PROMPT, draft=draft, **options)
        head.chain = None
        apart = model.generate(PROMPT, draft=draft, **options)
    finally:
        head.chain = whole
    assert chained.token_ids == apart.token_ids == plain.token_ids
    assert chained.drafting is not None
    assert apart.drafting is not None
    for field in ("steps", "proposed", "accepted", "reached", "right"):
        assert getattr(chained.drafting, field) == getattr(apart.drafting, field)
    assert bool(counted.ends) == ("penalties" not in name)
    if "no draw is certain" in name:
        assert all(counted.ends)
    elif "penalties" not in name and name != "an end":
        assert chained.drafting.proposed > 30


def test_lengths_that_adapt_are_those_of_steps_one_by_one(model: TextModel) -> None:
    """Costs are measured and move lengths, the text stays."""
    options = {"max_tokens": 300, "temperature": 0.6, "seed": 2, **NO_END}
    plain = model.generate(PROMPT, draft="none", **options)
    assert model.generate(PROMPT, draft="head", **options).token_ids == plain.token_ids


# --- the chain itself ----------------------------------------------------------------------------

NOTHING = np.zeros(0, np.int64), np.zeros(0, np.float32)


def _feed(head: HeadModel, state: Any, rows: int = 2) -> Feed:
    rng = np.random.default_rng(4)
    features = rng.standard_normal((rows, head.read), np.float32)
    hidden = np.zeros((rows, head.width), np.float32)
    return head.feed(state, features, hidden, [int(IDS[3 + i]) for i in range(rows)])


def _greedy() -> Draw:
    return Draw(0, largest=False, places=NOTHING[0], by=NOTHING[1])


def test_why_guessing_ends(model: TextModel) -> None:
    head, chain = model.drafting.head(), _chain(model)
    state = head.session.new_state(64)
    try:
        options: dict[str, Any] = {"position": 9, "draw": _greedy(), "ends": ()}
        all_made = chain.guess(_feed(head, state), 40, needed=None, **options)
        assert len(all_made.tokens) == all_made.steps == LONGEST
        assert state.pending == 2 + LONGEST - 1
        assert set(all_made.tokens) <= set(IDS.tolist())
        assert all_made.unsure is None
        state.discard()

        needed = [0.0, 0.0, 0.0, 1.1, 0.0]
        poor = chain.guess(_feed(head, state), 5, needed=needed, **options)
        assert poor.tokens == all_made.tokens[:3]
        assert poor.steps == 4
        assert state.pending == 2 + 3
        assert 0.0 < chain.reach < 1.0
        state.discard()

        ends = (all_made.tokens[1], 0)
        first = all_made.tokens.index(ends[0])
        ended = chain.guess(_feed(head, state), 5, needed=None, **{**options, "ends": ends})
        assert ended.tokens == all_made.tokens[: first + 1]
        state.discard()

        nowhere = Draw(
            0, largest=False, places=np.arange(len(IDS)), by=np.full(len(IDS), np.nan, np.float32)
        )
        unsure = chain.guess(_feed(head, state), 5, needed=None, **{**options, "draw": nowhere})
        assert unsure.tokens == []
        assert unsure.unsure is not None
        row, behind = unsure.unsure
        assert np.isfinite(row).all(), "logits are as the head gave them"
        assert behind.shape == (1, head.width)
        state.discard()
        step = head.session.step([_feed(head, state)])[0]
        np.testing.assert_array_equal(row, step.logits[0])
        np.testing.assert_array_equal(behind, step.taps["next"][-1:])
        state.discard()
        assert len({DONE, POOR, UNSURE, 0}) == 4
    finally:
        state.close()


def test_guesses_cross_segments_of_a_context(model: TextModel) -> None:
    """Where the chain begins in one segment of 256 tokens and ends in the next."""
    head, chain = model.drafting.head(), _chain(model)
    options: dict[str, Any] = {"position": 9, "draw": _greedy(), "ends": (), "needed": None}
    state = head.session.new_state(300)
    try:
        for length in (253, 254, 255, 256):
            while state.length < length:
                rows = min(64, length - state.length)
                head.session.step([_feed(head, state, rows)])
                state.commit(rows)
            found = chain.guess(_feed(head, state), 6, **options)
            state.discard()
            tokens, feed = list[int](), _feed(head, state)
            for _ in range(6):
                step = head.session.step([feed])[0]
                state.commit(feed.rows)
                tokens.append(int(IDS[step.logits[0].argmax()]))
                behind = step.taps["next"][-1:]
                feed = head.feed(state, head.no_features, behind, tokens[-1:])
            state.rewind(length)
            assert found.tokens == tokens, length
    finally:
        state.close()


def test_what_does_not_fit_is_refused_and_nothing_is_held(model: TextModel) -> None:
    head, chain = model.drafting.head(), _chain(model)
    options: dict[str, Any] = {"position": 9, "draw": _greedy(), "ends": (), "needed": None}
    state = head.session.new_state(64)
    session = head.session
    assert isinstance(session, CpuSession)
    free = session.pool.indices.free
    try:
        feed = _feed(head, state)
        broken = Feed(state, None, "last", inputs={"hidden": feed.inputs["hidden"]}, taps=feed.taps)
        with pytest.raises(RequestError, match="expected"):
            chain.guess(broken, 3, **options)
        assert (state.length, state.pending) == (0, 0)
        assert session.pool.indices.free == free
        assert len(chain.guess(feed, 3, **options).tokens) == 3
    finally:
        state.close()


def test_heads_that_have_no_chain(model: TextModel) -> None:
    session = model.drafting.head().session
    assert chains(session.graph, len(IDS))
    assert not chains(session.graph, LEAST - 1)
    graph, _ = family_graph("mamba2", vocab_size=300)
    assert not chains(graph, 300)


def test_ids_past_the_table_are_never_looked_up(model: TextModel) -> None:
    head = model.drafting.head()
    ids = IDS.copy()
    assert chain_of(head.session, model.session, model.session.graph, ids) is not None
    ids[-1] = 10_000
    assert chain_of(head.session, model.session, model.session.graph, ids) is None


def test_rows_behind_guesses_need_no_features(model: TextModel) -> None:
    chain, head = _chain(model), model.drafting.head()
    embed = embedding_of(model.session.graph)
    assert embed is not None
    graph = head.session.graph
    made = following(graph, embed, Weight((260, head.width), "f16"), chain.names)
    made.shapes()
    assert len(made.nodes) == len(graph.nodes) - 1  # a product and a sum less, a table more
    assert {v.name for v in made.inputs} == {"guessed.tokens", "hidden", "rows"}
    odd = graph.replace(nodes=tuple(_other_sum(node) for node in graph.nodes))
    made = following(odd, embed, Weight((260, head.width), "f16"), chain.names)
    assert len(made.nodes) == len(graph.nodes) + 1
    assert {v.name for v in made.inputs} == {"guessed.tokens", "features", "hidden", "rows"}


def _other_sum(node: Node) -> Node:
    """The sum with `hidden` as one with something else, in whose place nothing can stand."""
    if node.op == "add" and "hidden" in node.inputs:
        inputs = tuple("embedding" if name == "hidden" else name for name in node.inputs)
        return msgspec.structs.replace(node, inputs=inputs)
    return node


# --- rests ---------------------------------------------------------------------------------------


class Never:
    """Costs and guesses of which none is worth it."""

    key, taps, gaps, warm = "head", ("a", "b"), True, 64

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.found: list[int] = []

    def propose(self, tokens: Any, limit: int) -> Draft:
        self.asked.append(len(tokens))
        return Draft(self.found, key="ngram-8")

    def observe(self, proposed: int, accepted: int) -> None:
        pass

    def see(self, start: int, rows: Any) -> None:
        pass


def _costs(lanes: int = 1) -> StepCosts:
    costs = StepCosts()
    for _ in range(8):
        costs.note(lanes, lanes, 1.0)
        costs.note(4 * lanes, lanes, 1.1)
    return costs


@pytest.mark.parametrize("lanes", [1, 4])
def test_where_nothing_is_found_it_is_looked_for_now_and_then(lanes: int) -> None:
    proposer = Never()
    speculation = Speculation([proposer], limit=4, controller=Controller(_costs(lanes), 4))
    idle, every = IDLE // lanes, EVERY * lanes
    written = range(10, 10 + idle + 5 * every + 1)
    for count in written:
        if speculation.awake(count):
            assert not speculation.draft([1] * count, 4)
        speculation.took(1, 0)
    assert proposer.asked[:idle] == list(written)[:idle]
    assert np.diff(proposer.asked[idle:]).tolist() == [every] * 5
    proposer.found, count = [1, 2, 3, 4], proposer.asked[-1] + every
    assert not speculation.awake(count - 1)
    assert speculation.draft([1] * count, 4)
    speculation.took(5, 4)
    assert all(speculation.awake(count + more) for more in range(idle))
    assert speculation.stats.steps == len(written) + 1


def test_a_proposer_of_the_callers_own_is_asked_each_time() -> None:
    proposer = Never()
    speculation = Speculation([proposer], limit=4)
    for count in range(1, 60):
        assert speculation.awake(count)
        speculation.draft([1] * count, 4)
        speculation.took(1, 0)
    assert proposer.asked == list(range(1, 60))
    assert speculation.reads(60) == proposer.taps


def test_who_rests_for_long_reads_nothing_until_shortly_before() -> None:
    proposer, controller = Never(), Controller(_costs(), 4)
    speculation = Speculation([proposer], limit=4, controller=controller)
    controller.of("head").resting_until = 300
    for count in range(10, 10 + IDLE + 1):
        assert speculation.reads(count) == proposer.taps
        speculation.draft([1] * count, 4)
        speculation.took(1, 0)
    assert speculation.reads(100) == speculation.reads(300 - 65) == ()
    assert speculation.reads(300 - 64) == proposer.taps
    proposer.found = [1, 2, 3]
    assert speculation.draft([1] * 100, 4)
    assert speculation.reads(100) == proposer.taps, "it is not known any more who rests"


def test_texts_with_long_rests_are_the_plain_ones(
    kernel_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head that is hardly ever right: it rests, without rows of the model, and begins again."""
    options = {"max_tokens": 700, "temperature": 1.5, "seed": 3, **NO_END}
    with model_with_head("kv", kernel_folder) as model:
        plain = model.generate(PROMPT, draft="none", **options).token_ids
        step, fed = model.session.step, list[bool]()

        def watched(feeds: Any) -> Any:
            fed.extend(bool(feed.taps) for feed in feeds)
            return step(feeds)

        monkeypatch.setattr(model.session, "step", watched)
        monkeypatch.setattr(Controller, "best", lambda self, guess: (1, 0.9))
        got = model.generate(PROMPT, draft="head", **options)
        assert got.token_ids == plain
        changes = np.flatnonzero(np.diff(fed))
        assert len(changes) >= 3, "rows came, came no more, and came again"
        assert sum(fed) < 0.8 * len(fed)
