"""Guesses of a draft head: a layer that reads what the model thought, and guesses from there.

The head has a state of its own, a row for each token of the text but the newest: the model's rows
there and the token behind (`edgert.bundle.draft`). The row of the newest but one gives the first
guess, each further one a row more, which is taken back when the model has answered. Rows that
`see` brings wait until guesses are wanted.

What the head knows may begin anywhere in a text: rows of places that the model remembers from an
earlier request do not come, and of a long prompt only the end is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ...bundle.draft import (
    EMBEDDING,
    FEATURES,
    HIDDEN,
    NEXT,
    ROLE,
    draft_ids,
    embedding_of,
)
from ...errors import BundleError, RequestError, ResourceError
from ...graph import Graph
from ...kernels.ops import CATALOGUE
from ...roles import step_inputs
from ...session.base import Feed, Session, State, StepResult
from ...session.options import SessionOptions
from ..params import Resolved
from ..ranking import F32, Ids
from ..sampling import Sampler
from ..tokenizer import Tokenizer
from .controller import Controller
from .cycle import Ask
from .guesses import GuessingModel, Work
from .proposer import Draft
from .verify import Verify

if TYPE_CHECKING:
    from ...bundle.reader import Bundle
    from ...session.chain import Chain

KEPT = 64  # rows that wait for a state at most: older ones tell little, and each costs time
LOOKED_UP = 512  # tokens whose rows are kept
USUAL = 9  # rows of a feed while guessing: those of a step that was kept whole
Lookup = Callable[[Sequence[int]], F32]


class HeadModel(GuessingModel):
    """A head's session. ids: int64 [V_d], what its logits are of. taps: values of the model, in the
    order in which the head reads them. lookup: rows float32 [n, C] of tokens. accepted: share of
    its guesses that were right when it was made, greedy (True) and at a temperature (False). chain:
    makes guesses of one request in one program, None where that cannot be."""

    usual = USUAL

    def __init__(
        self, session: Session, tokenizer: Tokenizer, *, ids: Ids, taps: Sequence[str],
        lookup: Lookup, accepted: Mapping[bool, float] | None = None, chain: Chain | None = None,
    ) -> None:  # fmt: skip
        super().__init__(session)
        self.chain = chain
        self.accepted = dict(accepted or {})
        self.tokenizer, self.ids, self.taps, self.lookup = tokenizer, ids, tuple(taps), lookup
        widths = {n: int(value.shape[-1]) for n, value in step_inputs(session.graph).items()}
        self.width, self.read = widths[HIDDEN], widths[FEATURES]
        # what rows have no values of: nobody writes there
        self.no_hidden = np.zeros((USUAL, self.width), np.float32)
        self.no_features = np.zeros((1, self.read), np.float32)

    def proposer(
        self, params: Resolved, *, verify: Verify, controller: Controller | None
    ) -> HeadProposer:
        """The guesses of one request."""
        return HeadProposer(self, params, verify, controller)

    def work(self, ask: Ask) -> Work:
        if not isinstance(ask.proposer, HeadProposer):
            raise TypeError(f"a wish of {type(ask.proposer).__name__}, expected a HeadProposer's")
        return _Work(ask, ask.proposer)

    def make(self, asks: Sequence[Ask]) -> None:
        if len(asks) == 1 and self.chain is not None:
            work = self.work(asks[0])
            if isinstance(work, _Work) and work.proposer.draw is not None:
                self._make_one(work, self.chain)
                return
        super().make(asks)

    def _make_one(self, work: _Work, chain: Chain) -> None:
        """The same for one wish, in one program."""
        ask, start = work.ask, self._clock()
        last, spent, steps, more = start, 0.0, 0, False
        if work.begin():
            usual = len(work.proposer.waiting) <= self.usual
            try:
                steps, more = work.chain(chain)
            except ResourceError:
                work.guesser.close()
            last = self._clock()
            spent, steps = (last - start, steps) if usual else (0.0, 0)
        if more:  # the reference had to pick one
            last, further, count = self._all([work], last)
            spent, steps = spent + further, steps + count
        work.end()
        ask.seconds, ask.each = last - start, spent / steps if steps else 0.0

    def feed(self, state: State, features: F32, hidden: F32, tokens: Sequence[int]) -> Feed:
        """Rows [n, ..] and the tokens behind them."""
        given = {FEATURES: features, HIDDEN: hidden, EMBEDDING: self.lookup(tokens)}
        return Feed(state, None, "last", inputs=given, taps=(NEXT,))

    def close(self) -> None:
        self.session.close()


class HeadProposer:
    """One request's guesses by a head. It is asked through its maker, see `cycle.Shared`.

    known: rows of its state that are the text's. waiting: rows that follow them, [1, C] of each
    tap. place: of the text, where the next row belongs.
    """

    key = "head"
    gaps = True  # rows of places that are known from elsewhere need not come
    warm = 32  # rows that should come before guesses are wanted

    def __init__(
        self, maker: HeadModel, params: Resolved, verify: Verify, controller: Controller | None
    ) -> None:
        self.maker, self.controller, self.verify = maker, controller, verify
        self.taps = maker.taps
        self.sampler = Sampler.of(params, maker.tokenizer, maker.ids)
        self.ends = frozenset(maker.tokenizer.eos_token_ids) | frozenset(params.stop_token_ids)
        chain = maker.chain if verify == "coupled" else None
        chained = chain is not None and len(self.ends) <= chain.most_ends
        self.draw = self.sampler.compiled() if chained else None
        self.state: State | None = None
        self.known = self.place = 0
        self.waiting: deque[tuple[F32, ...]] = deque(maxlen=KEPT)

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        ask = Ask(self, tokens, limit, len(tokens))
        self.maker.make([ask])
        return ask.draft

    def observe(self, proposed: int, accepted: int) -> None:
        """The rows that come tell."""

    def see(self, start: int, rows: Mapping[str, F32]) -> None:
        """Rows of committed tokens, as `proposer.TapReader` has it."""
        if start > self.place:
            self.close()
        elif start < self.place:
            self._forget(self.place - start)
        found = [rows[name] for name in self.taps]
        count = len(found[0])
        if len(self.waiting) + count > KEPT:
            self.close()
        if count == 1:
            self.waiting.append(tuple(found))
        else:
            for at in range(max(0, count - KEPT), count):
                self.waiting.append(tuple([tap[at : at + 1] for tap in found]))
        self.place = start + count

    def _forget(self, count: int) -> None:
        """Take the newest rows back."""
        waiting = min(count, len(self.waiting))
        for _ in range(waiting):
            self.waiting.pop()
        if count > waiting and self.state is not None:
            left = max(0, self.known - (count - waiting))
            self.known = self.state.rewind(left)

    def close(self) -> None:
        """Give the state back, and forget what was seen."""
        if self.state is not None:
            self.state.close()
        self.state, self.known = None, 0
        self.waiting.clear()


class _Work(Work):
    """One wish while it is fulfilled: the rows that wait, then a row a guess."""

    def __init__(self, ask: Ask, proposer: HeadProposer) -> None:
        super().__init__(ask, proposer)
        self.proposer = proposer
        self.behind: F32 | None = None  # the row that the next guess goes on from

    def begin(self) -> bool:
        proposer, maker = self.proposer, self.proposer.maker
        count = len(proposer.waiting)
        if count == 0 or count >= len(self.text) or proposer.place != len(self.text) - 1:
            return False
        if proposer.known + count + self.ask.limit > maker.session.context:
            return False
        state = proposer.state
        if state is not None and (state.pending or state.length > proposer.known):
            proposer.known = state.rewind(proposer.known)  # an interrupt came in between
        try:
            if proposer.state is None:
                proposer.state = maker.session.new_state(count + self.ask.limit)
            limit = maker.session.max_rows
            if count > limit:
                maker.session.step([self._text(limit)])
                self._keep(limit)
                return False
        except ResourceError:
            proposer.close()
            return False
        return True

    def chain(self, chain: Chain) -> tuple[int, bool]:
        """Guesses in one program: steps that were made, and whether guessing goes on without."""
        proposer, controller = self.proposer, self.proposer.controller
        draw, count = proposer.draw, len(proposer.waiting)
        if draw is None:
            raise RuntimeError("a chain of guesses that compiled code cannot pick")
        needed = None if controller is None else controller.needed(proposer.key)
        found = chain.guess(
            self._text(count), self.ask.limit, position=len(self.text), needed=needed, draw=draw,
            ends=tuple(proposer.ends),
        )  # fmt: skip
        self.ask.tried = True
        self.tokens += found.tokens
        self.text += found.tokens
        if found.unsure is None:
            self._keep(count)
            return found.steps, False
        self._keep(count, len(found.tokens))
        row, self.behind = found.unsure
        self.reach = chain.reach
        return found.steps, self.pick(row)

    def _text(self, count: int) -> Feed:
        """The first rows that wait. The last one's token behind it is the text's newest."""
        waiting, maker = self.proposer.waiting, self.proposer.maker
        if count == 1:
            features = np.concatenate(waiting[0], axis=1)
        else:
            taps = [np.concatenate(tap) for tap in zip(*islice(waiting, count), strict=True)]
            features = np.concatenate(taps, axis=1)
        start = len(self.ask.tokens) - len(waiting)
        hidden = maker.no_hidden[:count]
        if count > USUAL:
            hidden = np.zeros((count, maker.width), np.float32)
        tokens = self.ask.tokens[start : start + count]
        return maker.feed(self._state(), features, hidden, tokens)

    def _keep(self, count: int, guesses: int = 0) -> None:
        """Rows of the text were fed, and of guesses that others follow."""
        proposer = self.proposer
        self._state().commit(count + guesses)
        proposer.known += count
        for _ in range(count):
            proposer.waiting.popleft()

    def _state(self) -> State:
        if self.proposer.state is None:
            raise RuntimeError("a wish is fulfilled without a state")
        return self.proposer.state

    def feed(self) -> Feed:
        if self.behind is None:
            return self._text(len(self.proposer.waiting))
        maker = self.proposer.maker
        return maker.feed(self._state(), maker.no_features, self.behind, self.tokens[-1:])

    def take(self, result: StepResult) -> bool:
        if self.behind is None:
            self._keep(len(self.proposer.waiting))
        else:
            self._state().commit(1)
        self.behind = result.taps[NEXT][-1:]
        return self.guess(result.logits[0])

    def end(self) -> None:
        state = self.proposer.state
        if state is not None and state.length > self.proposer.known:
            self.proposer.known = state.rewind(self.proposer.known)
        super().end()


def has_head(bundle: Bundle) -> bool:
    """Whether a bundle has a draft head."""
    return bundle.manifest.draft is not None


def open_head(
    bundle: Bundle, options: SessionOptions, tokenizer: Tokenizer, model: Session | None = None
) -> HeadModel:
    """The draft head of a bundle, on the device of the options. model: the bundle's own session.
    Raises what opening a session does, and RequestError for a bundle without one."""
    from ...session import open_session

    spec = bundle.manifest.draft
    if spec is None:
        raise no_head(bundle.manifest.name)
    part, text = bundle.manifest.part_of(ROLE), bundle.graph()
    ids = draft_ids(
        bundle.read(spec.ids), bundle.manifest.text_spec.vocab_size, where=str(bundle.path)
    )
    if fault := _fault(ids, tokenizer, spec.taps, model):
        raise BundleError(f"{bundle.path}: {fault}", code="draft-head")
    lookup = _lookup(text, bundle.weights())
    session = open_session(bundle, options, part=part)
    return HeadModel(
        session, tokenizer, ids=ids, taps=spec.taps, lookup=lookup,
        accepted=_accepted(spec.measured), chain=chain_of(session, model, text, ids),
    )  # fmt: skip


def _fault(ids: Ids, tokenizer: Tokenizer, taps: Sequence[str], model: Session | None) -> str:
    """Why a head cannot guess for a model, or nothing."""
    from ...session.cpu import CpuSession

    if int(ids[0]) >= tokenizer.size:
        return (
            f"the draft head guesses ids from {ids[0]} on, expected some of the tokenizer's "
            f"{tokenizer.size}"
        )
    if isinstance(model, CpuSession) and not model.shows(taps):
        return (
            f"draft.taps {list(taps)[:8]} only exist inside a gated product, expected hidden rows"
        )
    return ""


def chain_of(session: Session, model: Session | None, text: Graph, ids: Ids) -> Chain | None:
    """What makes a head's guesses in one program, None where its steps go one by one."""
    from ...session.chain import Chain, Names, chains
    from ...session.cpu import CpuSession

    embed = embedding_of(text)
    if not isinstance(session, CpuSession) or not isinstance(model, CpuSession) or embed is None:
        return None
    rows = text.weights[embed.weights["weight"]].shape[0]
    if not chains(session.graph, len(ids)) or int(ids[-1]) >= rows:  # rows are not looked at again
        return None
    chain = Chain(session, model, embed, Names(FEATURES, HIDDEN, EMBEDDING, NEXT), ids)
    return chain if chain.fits() else None


def _accepted(measured: Mapping[str, float]) -> dict[bool, float]:
    """Shares of accepted guesses that a manifest tells, by whether they are greedy ones."""
    told = {True: measured.get("accepted_greedy"), False: measured.get("accepted_sampled")}
    return {mode: share for mode, share in told.items() if share and 0 < share < 1}


def _lookup(graph: Graph, weights: Mapping[str, Any]) -> Lookup:
    """The text part's embed node on the host."""
    node = embedding_of(graph)
    if node is None:
        raise RuntimeError("a draft head was opened for a graph without a table of tokens")
    op = CATALOGUE[node.op]
    attrs, looked_up = op.check_attrs(node.attrs), op.reference
    held = {slot: weights[name] for slot, name in node.weights.items()}

    known: dict[int, F32] = {}

    def row(token: int) -> F32:
        """The very array of last time, [1, C]."""
        found = known.get(token)
        if found is None:
            found = looked_up([np.array([token], np.int32)], held, attrs)
            if len(known) == LOOKED_UP:
                known.clear()
            known[token] = found
        return found

    def rows(tokens: Sequence[int]) -> F32:
        if len(tokens) == 1:
            return row(tokens[0])
        if len(tokens) <= USUAL:
            return np.concatenate([row(token) for token in tokens])
        made: F32 = looked_up([np.array(tokens, np.int32)], held, attrs)
        return made

    return rows


def no_head(name: str) -> RequestError:
    """The error of drafting with a head where there is none."""
    return RequestError(
        f"{name or 'this model'} has no draft head",
        code="draft-head",
        hint="`edgert draft BUNDLE --data FILE -o OUT` trains one",
        field="draft",
    )
