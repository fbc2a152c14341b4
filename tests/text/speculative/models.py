"""Tiny models of every kind of state, and sources of drafts that are right, wrong and mad.

`ToySession` is a linear attention with a constant decay and a short convolution, in NumPy over the
CPU's own slots: what a recurrent op does, token by token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from edgert.kernels.states import ConvState, RecurrentState, StateSpec
from numpy.typing import NDArray

from edgert.graph import Graph, Value
from edgert.session.base import Feed, Session, StepResult
from edgert.session.cpu import CpuSession
from edgert.session.feeds import FeedChecker
from edgert.session.pages import PagePool
from edgert.session.recurrent import ConvSlots, RecurrentSlots
from edgert.session.replay import Replaying
from edgert.session.sequence import CpuState
from edgert.session.slots import SlotPool
from edgert.session.tailed import TailedSlots
from edgert.text.model import TextModel
from edgert.text.speculative.proposer import Draft
from edgert.text.template import ChatTemplate
from edgert.text.tokenizer import Tokenizer

from ...session.memory_writers import fold
from ...tiny import EOS, SPECIAL, TEMPLATE, VOCAB, tiny_graph, tiny_tokenizer, tiny_weights

CONTEXT = 1024
NO_END = {"logit_bias": {EOS: -100.0}}
F32 = NDArray[np.float32]


def tokenizer(vocab: int = VOCAB) -> Tokenizer:
    return Tokenizer(tiny_tokenizer().encode(), vocab_size=vocab, eos_token_ids=(EOS,))


def text_model(session: Session, **options: Any) -> TextModel:
    tokens = tokenizer()
    special = {"bos_token": SPECIAL[0], "eos_token": SPECIAL[1]}
    template = ChatTemplate(TEMPLATE, special, control=tokens.control)
    return TextModel(session, tokens, template, **options)


def cpu_session(
    folder: Path, *, seed: int = 0, kv_bits: int = 0, kv_memory: int | None = None, **sizes: Any
) -> CpuSession:
    sizes = {"quant": "int4", "context": CONTEXT} | sizes
    graph = tiny_graph(**sizes)
    weights = tiny_weights(graph, seed)
    return CpuSession(graph, weights, threads=1, cache=folder, kv_bits=kv_bits, kv_memory=kv_memory)


class Unchecked(FeedChecker):
    """The toy has no nodes that could be checked."""

    def __init__(self) -> None:
        pass

    def check(self, feeds: Sequence[Feed]) -> None:
        pass


class ToySession(Session):
    """Logits of a decaying sum of outer products of the tokens' rows, and of the last rows.

    tail: tokens that its matrix can take back; 0: a step is kept all or not at all. noise: how much
    it differs from the one without.
    """

    device, halves, max_rows, context = "cpu", False, 64, CONTEXT
    spec: RecurrentState

    def __init__(self, tail: int, *, noise: float = 0.0, slots: int = 40) -> None:
        self.spec = RecurrentState(
            2, 3, 4, normaliser=True, tail=tail, tail_width=14 if tail else 0
        )
        self.conv = ConvState(6, 4, tail=tail or 16)
        states: Mapping[str, StateSpec] = {"s": self.spec, "c": self.conv}
        inputs = (Value("tokens", ("T",), "int32"), Value("rows", ("R",), "int32"))
        logits = (Value("logits", ("R", VOCAB)),)
        self.graph = Graph("toy", inputs, logits, (), {}, dict(states), CONTEXT)
        self.pool = PagePool(self.graph, 4, 4)
        folds = {"s": fold} if tail else {}
        self.slots = SlotPool(self.graph, slots, self.max_rows, folds)
        whole = self.slots.whole_steps
        self.replaying = Replaying(Unchecked(), self.max_rows, self._step, whole=whole)
        rng = np.random.default_rng(0)
        self.rows = rng.standard_normal((VOCAB, 14)).astype(np.float32)
        self.inputs = rng.standard_normal((VOCAB, 6)).astype(np.float32)
        self.head = (rng.standard_normal((VOCAB, 24 + 24)) * 1.5).astype(np.float32)
        self.head += (noise * rng.standard_normal(self.head.shape)).astype(np.float32)
        self.steps = 0

    def new_state(self, expected: int = 0) -> CpuState:
        state = CpuState(self.pool, self.slots, self.context, "toy", long_rope=False)
        self.replaying.begin(state)
        return state

    def step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        return self.replaying.step(feeds)

    def _step(self, feeds: Sequence[Feed]) -> list[StepResult]:
        self.steps += 1
        return [self._feed(feed) for feed in feeds]

    def _feed(self, feed: Feed) -> StepResult:
        state, tokens = feed.state, feed.tokens
        assert isinstance(state, CpuState)
        assert tokens is not None
        assert not state.pending
        state.reserve(state.length + len(tokens))
        memory, conv = self.slots.memories["s"], self.slots.memories["c"]
        assert isinstance(conv, ConvSlots)
        slot = state.slot
        matrix, sums = self._recalled(memory, slot, tokens)
        end = int(conv.words[slot, 0])
        conv.inputs[slot, end : end + len(tokens)] = self.inputs[tokens]
        out = []
        for index, token in enumerate(tokens.tolist()):
            fold(matrix, sums, self.rows[token : token + 1])
            seen = conv.inputs[slot, end + index - 3 : end + index + 1]
            scaled = matrix / (1 + np.abs(sums).sum())
            out.append(np.concatenate([np.tanh(scaled).ravel() * 3, seen.ravel()]) @ self.head.T)
        if isinstance(memory, RecurrentSlots):
            side = 1 - int(memory.words[slot, 2])
            memory.parts["matrix"][slot, side] = matrix
            memory.parts["normaliser"][slot, side] = sums
        state.pending = len(tokens)
        wanted = {"all": out, "last": out[-1:], "none": out[:0]}[feed.logits]
        return StepResult(np.array(wanted, np.float32).reshape(len(wanted), VOCAB))

    def _recalled(self, memory: Any, slot: int, tokens: Any) -> tuple[F32, F32]:
        """The sums of all committed tokens. Pending rows go into the tail, and what they complete
        into the spare matrix."""
        words = memory.words[slot]
        if isinstance(memory, RecurrentSlots):
            side = int(words[2])
            return memory.parts["matrix"][slot, side].copy(), memory.parts["normaliser"][
                slot, side
            ].copy()
        assert isinstance(memory, TailedSlots)
        held, count = memory.parts["tail"][slot], int(words[1])
        held[count : count + len(tokens)] = self.rows[tokens]
        if words[3] >= 0:
            done = self._folded(memory, slot)
            fold(*done, held[: words[4] - words[0]])
            memory.sums["matrix"][words[3]], memory.sums["normaliser"][words[3]] = done
        made = self._folded(memory, slot)
        fold(*made, held[:count])
        return made

    def _folded(self, memory: TailedSlots, slot: int) -> tuple[F32, F32]:
        at = int(memory.words[slot, 2])
        found = [np.zeros_like(array[0]) if at < 0 else array[at] for array in memory.sums.values()]
        return found[0].copy(), found[1].copy()

    def run(self, arrays: Mapping[str, Any], graph: Graph | None = None) -> dict[str, F32]:
        raise NotImplementedError

    def close(self) -> None:
        pass


def sessions(folder: Path) -> dict[str, Callable[..., Session]]:
    """Makers of a session for every kind of state, by name."""
    return {
        "kv": lambda **o: cpu_session(folder, **o),
        "kv8": lambda **o: cpu_session(folder, kv_bits=8, **o),
        "window": lambda **o: cpu_session(folder, window=40, **o),
        "tail": lambda **o: ToySession(20, **o),
        "whole": lambda **o: ToySession(0, **o),
    }


def unlike(session: Session) -> dict[str, Any]:
    """Arguments for a maker of another model, which is right now and then."""
    return {"noise": 0.4} if isinstance(session, ToySession) else {"layers": 1, "ff": 160}


KINDS = ("kv", "kv8", "window", "tail", "whole")


class Scripted:
    """Guesses from a known text: `right` of every draft are right, the next is not.

    right < 0: all are. gamma: guesses a time.
    """

    def __init__(self, text: Sequence[int], gamma: int, right: int = -1) -> None:
        self.text, self.gamma, self.right = list(text), gamma, right
        self.seen: list[tuple[int, int]] = []

    def propose(self, tokens: Sequence[int], limit: int) -> Draft:
        found = self.text[len(tokens) : len(tokens) + min(self.gamma, limit)]
        if 0 <= self.right < len(found):
            found[self.right] = 4 + (found[self.right] - 3) % (VOCAB - 4)
        return Draft(found)

    def observe(self, proposed: int, accepted: int) -> None:
        self.seen.append((proposed, accepted))


class Mad:
    """Guesses of no sense."""

    def __init__(self, gamma: int) -> None:
        self.gamma = gamma

    def propose(self, tokens: Sequence[int], limit: int) -> Sequence[int]:
        rng = np.random.default_rng(len(tokens))
        odd: list[list[int]] = [[], [-1, 5], [10**6], [EOS, 5, 6]]
        if len(tokens) % 5 < len(odd):
            return odd[len(tokens) % 5]
        return [int(x) for x in rng.integers(4, VOCAB, self.gamma)]

    def observe(self, proposed: int, accepted: int) -> None:
        pass
