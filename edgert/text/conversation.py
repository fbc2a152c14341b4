"""A chat that keeps its messages and its state, so that a turn costs its new tokens only."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import RequestError
from ..session.base import Session, State
from ..session.engine import Engine
from . import saved
from .adapters import AdapterPath, Adapters
from .generate import Progress, Run
from .params import SamplingOptions
from .relay import RelayOptions
from .results import Generation
from .speculative.options import Draft
from .speculative.proposer import Proposer
from .stream import AsyncStream, Stream, ended

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import TurnOptions


class ChatModel(Protocol):
    """What a conversation needs of its model; `TextModel` has it."""

    @property
    def session(self) -> Session: ...
    @property
    def engine(self) -> Engine: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def adapters(self) -> Adapters: ...

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> list[int]: ...

    def run(self, tokens: Sequence[int], params: Mapping[str, Any], **options: Any) -> Run: ...


class Memory:
    """A conversation's state between two turns, and the tokens that it holds; it may be evicted
    while nobody uses it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may come while it is held
        self._content: tuple[State, list[int]] | None = None

    def put(self, state: State, fed: list[int]) -> None:
        with self._lock:
            self._content = state, fed

    def take(self) -> tuple[State, list[int]] | None:
        """The content, which is the caller's from now on."""
        with self._lock:
            content, self._content = self._content, None
            return content

    def snapshot(self) -> tuple[dict[str, Any] | None, list[int]]:
        """A copy of the state, and its tokens; who wants to take them waits for it."""
        with self._lock:
            if self._content is None:
                return None, []
            state, fed = self._content
            return state.snapshot(), list(fed)

    def evict(self) -> None:
        if content := self.take():
            content[0].close()

    @property
    def nbytes(self) -> int:
        content = self._content
        return 0 if content is None else content[0].nbytes


class Conversation:
    """Messages with a model, made by `TextModel.conversation`.

    messages: what was said, each {"role", "content"}, a system message first where there is one.
    Every turn renders all of them; the longest prefix of tokens that the state already holds is
    reused. A cancelled answer stays in the messages as far as it came; a failed turn leaves none.
    Between turns its state may be evicted where other answers need the memory: then the next turn
    computes it again. It is given back when the conversation or its model is closed, or dropped.
    """

    def __init__(
        self,
        model: ChatModel,
        system: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        shift: bool = False,
        adapter: AdapterPath | None = None,
    ) -> None:
        self._model, self._adapter = model, model.adapters.key(adapter)
        self._adapter_path = None if adapter is None else os.path.abspath(adapter)
        self._tools, self._template, self._shift = tools, template, shift
        self.messages: list[dict[str, Any]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._memory = Memory()
        self._left_out = 0  # messages after the system's that a full context has no room for
        self._run: Run | None = None  # the turn that is being answered
        self._closed = 0  # how often `close` was called

    def say(self, text: str, **options: Unpack[TurnOptions]) -> Generation:
        """One turn; options as for `TextModel.stream`."""
        return self.stream(text, **options).finish()

    async def asay(self, text: str, **options: Unpack[TurnOptions]) -> Generation:
        """`say` for asyncio."""
        return await self.astream(text, **options).finish()

    def stream(
        self,
        text: str,
        *,
        draft: Draft | None = None,
        proposer: Proposer | None = None,
        relay: RelayOptions | None = None,
        progress: Progress | None = None,
        **params: Unpack[SamplingOptions],
    ) -> Stream:
        """One turn, piece by piece. Raises RequestError before anything runs."""
        engine = self._model.engine
        engine.check()
        if (last := self._run) is not None and last.cancelled:
            engine.settle(last)
        return Stream(
            engine, self._turn(text, params, progress, draft=draft, proposer=proposer, relay=relay)
        )

    def astream(
        self,
        text: str,
        *,
        draft: Draft | None = None,
        proposer: Proposer | None = None,
        relay: RelayOptions | None = None,
        progress: Progress | None = None,
        **params: Unpack[SamplingOptions],
    ) -> AsyncStream:
        """`stream` for asyncio: `async for piece in conversation.astream(...)`."""
        engine, last = self._model.engine, self._run
        engine.check()

        def turn() -> Run:
            return self._turn(text, params, progress, draft=draft, proposer=proposer, relay=relay)

        if last is None or not last.cancelled or last.done:
            return AsyncStream(engine, turn())
        before = list(self.messages)

        async def prepare() -> Run:  # once the turn that was stopped has left what it said
            await ended(engine, last)
            kept, added = self.messages[: len(before)], self.messages[len(before) :]
            theirs = [] if last.result is None else [last.result.message]
            if kept != before or (added and added[1:] != theirs):
                raise _went_on()
            return turn()

        return AsyncStream(engine, turn(), prepare=prepare)

    def _turn(
        self,
        text: str,
        params: SamplingOptions,
        progress: Progress | None,
        **by: Any,
    ) -> Run:
        before = list(self.messages)
        messages = [*before, {"role": "user", "content": text}]
        tokens = self._rendered(messages, params.get("max_tokens"))
        closed = self._closed
        return self._model.run(
            tokens,
            params,
            start=lambda run: self._open(run, before),
            keep=lambda run, state: self._keep(run, state, messages, closed),
            progress=progress,
            shift=self._shift,
            **by,
        )

    def _rendered(self, messages: Sequence[Mapping[str, Any]], max_tokens: object) -> list[int]:
        """The tokens of a turn, without the oldest ones that a full context has no room for."""
        model, first = self._model, int(bool(messages) and messages[0]["role"] == "system")
        context = model.session.context
        answer = max_tokens if isinstance(max_tokens, int) else context // 4
        limit = context - min(answer, context // 2)
        while True:
            shown = [*messages[:first], *messages[first + self._left_out :]]
            tokens = model.chat_ids(shown, tools=self._tools, template=self._template)
            if not self._shift or len(tokens) <= limit:
                return tokens
            later = range(first + 1, len(shown))
            turns = [i for i in later if shown[i]["role"] == "user"]
            if not turns:
                return tokens
            self._left_out += turns[0] - first
            limit = context // 2  # so that it happens once in many turns

    def _open(self, run: Run, before: Sequence[Mapping[str, Any]]) -> State:
        """The state, cut back to what it shares with the turn's tokens, one of which is left to be
        fed. Called by the engine."""
        if self._run not in (None, run) or self.messages != before:
            raise _went_on()
        state = self._state_for(run)
        self._run = run
        return state

    def _state_for(self, run: Run) -> State:
        self._model.engine.unpark(self._memory)
        content = self._memory.take()
        if content is None:
            return self._model.adapters.begin(run.prompt_tokens, self._adapter)
        state, fed = content
        state.rewind(common_prefix(fed, run.sequence[:-1]))
        state.expected = run.prompt_tokens
        return state

    def _keep(
        self, run: Run, state: State | None, messages: list[dict[str, Any]], closed: int
    ) -> None:
        """A turn is over. Called by the engine."""
        self._run = None
        if run.result is not None:
            self.messages = [*messages, run.result.message]
        if state is not None and closed == self._closed:
            self._memory.put(state, run.sequence[: state.length])
            self._model.engine.park(self._memory)
        elif state is not None:
            state.close()

    def undo(self) -> None:
        """Take the last turn back; RequestError when there is none."""
        turns = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if not turns:
            raise RequestError(
                "the conversation has no turn to take back",
                code="nothing-to-undo",
                hint="say something first",
            )
        self.messages = self.messages[: turns[-1]]
        self._left_out = 0

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [m for m in self.messages[:1] if m["role"] == "system"]
        self._left_out = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        run = self._run
        state = None if run is None else run.state
        return self._memory.nbytes if state is None else state.nbytes

    def close(self) -> None:
        """Give the state back; the messages stay, and another turn would start a new state."""
        self._closed += 1
        if not self._model.engine.forked:  # else its locks may be held by nobody
            self._memory.evict()

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, path: str | PathLike[str]) -> None:
        """Write messages and state to a file that `TextModel.restore` reads with the same model.
        Raises RequestError while a turn is being answered."""
        self._model.engine.check()
        if self._run is not None:
            raise RequestError(
                "a turn of this conversation is being answered",
                code="conversation-order",
                hint="save it when the turn is over",
            )
        snapshot, fed = self._memory.snapshot()
        content = {
            "messages": self.messages,
            "tools": self._tools,
            "template": self._template,
            "shift": self._shift,
            "left_out": self._left_out,
            "adapter": [self._adapter_path, self._adapter],
            "fed": fed,
            "snapshot": snapshot,
        }
        saved.write(path, content, owner(self._model))

    @classmethod
    def restore(cls, model: ChatModel, path: str | PathLike[str]) -> Conversation:
        """What `save` wrote, for the same bundle and device; anything else raises RequestError."""
        model.engine.check()
        content = saved.read(path, owner(model))
        adapter, key = content.get("adapter", (None, ""))
        self = cls(
            model,
            tools=content["tools"],
            template=content["template"],
            shift=content.get("shift", False),
            adapter=adapter,
        )
        if self._adapter != key:
            raise RequestError(
                f"{os.fspath(path)} was made with another adapter than {adapter} is now",
                code="state-foreign",
                hint="bring the adapter back as it was, or start a new conversation",
            )
        self.messages, fed = content["messages"], content["fed"]
        self._left_out = content.get("left_out", 0)
        if content["snapshot"] is None:
            return self
        state = model.adapters.begin(0, self._adapter)
        try:
            state.restore(content["snapshot"])
            if state.length != len(fed):
                raise saved.damaged(path, f"{state.length} tokens of {len(fed)}")
        except BaseException:
            state.close()
            raise
        self._memory.put(state, fed)
        model.engine.park(self._memory)
        return self


def _went_on() -> RequestError:
    return RequestError(
        "the conversation went on since this turn was prepared",
        code="conversation-order",
        hint="finish one turn before you start the next",
    )


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common prefix."""
    pairs = zip(a, b, strict=False)
    return next((i for i, (x, y) in enumerate(pairs) if x != y), min(len(a), len(b)))


def owner(model: ChatModel) -> dict[str, str]:
    """What a saved state must match: bundle, device, context."""
    return {
        "fingerprint": model.fingerprint,
        "device": model.session.device,
        "context": str(model.session.context),
    }
