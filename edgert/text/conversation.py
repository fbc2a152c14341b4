"""A chat that keeps its messages and its state, so that a turn costs its new tokens only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Protocol

from ..errors import RequestError
from ..session.base import Session, State
from . import saved
from .generate import Progress, Proposer, Run, check_room, expected_length
from .params import Resolved, SamplingParams
from .results import Generation
from .stream import Gate, Stream


class ChatModel(Protocol):
    """What a conversation needs of its model; `TextModel` has it."""

    @property
    def session(self) -> Session: ...
    @property
    def gate(self) -> Gate: ...
    @property
    def advice(self) -> Mapping[str, Any]: ...
    @property
    def fingerprint(self) -> str: ...

    def checked_params(self, params: Mapping[str, Any]) -> SamplingParams: ...

    def chat_ids(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> list[int]: ...

    def run(self, state: State, tokens: Sequence[int], params: Resolved, **options: Any) -> Run: ...

    def after_use(self) -> None: ...


class Conversation:
    """Messages with a model, made by `TextModel.conversation`.

    messages: what was said, each {"role", "content"}, a system message first where there is one.
    Every turn renders all of them; the longest prefix of tokens that the state already holds is
    reused. A cancelled answer stays in the messages as far as it came; a failed turn leaves none.
    Its state takes memory until it is closed or dropped, or its model is closed.
    """

    def __init__(
        self,
        model: ChatModel,
        system: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._tools, self._template = tools, template
        self.messages: list[dict[str, Any]] = []
        if system is not None:
            self.messages.append({"role": "system", "content": system})
        self._state: State | None = None
        self._fed: list[int] = []  # the tokens that the state holds

    def say(self, text: str, **options: Any) -> Generation:
        """One turn; options as for `TextModel.stream`."""
        return self.stream(text, **options).finish()

    def stream(
        self,
        text: str,
        *,
        proposer: Proposer | None = None,
        progress: Progress | None = None,
        **params: Any,
    ) -> Stream:
        """One turn, piece by piece. Raises RequestError before anything runs."""
        model = self._model
        model.gate.check_open()
        asked = model.checked_params(params)
        messages = [*self.messages, {"role": "user", "content": text}]
        tokens = model.chat_ids(messages, tools=self._tools, template=self._template)
        check_room(len(tokens), asked.max_tokens, model.session.context)
        resolved, before = asked.resolved(model.advice), list(self.messages)

        def start() -> Run:
            if self.messages != before:
                raise RequestError(
                    "the conversation went on since this turn was prepared",
                    code="conversation-order",
                    hint="finish one turn before you start the next",
                )
            state = self._ready(tokens, resolved)
            return model.run(state, tokens, resolved, proposer=proposer, progress=progress)

        def done(run: Run) -> None:
            self._fed = run.tokens[: run.state.length]
            if run.result is not None:
                self.messages = [*messages, run.result.message]
            model.after_use()

        return Stream(model.gate, start, done)

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

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = [m for m in self.messages[:1] if m["role"] == "system"]

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        return 0 if self._state is None else self._state.nbytes

    def close(self) -> None:
        """Give the state back; the messages stay, and another turn would start a new state."""
        if self._state is not None:
            self._state.close()
        self._state, self._fed = None, []

    def __enter__(self) -> Conversation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def save(self, path: str | PathLike[str]) -> None:
        """Write messages and state to a file that `TextModel.restore` reads with the same model."""
        gate = self._model.gate
        gate.enter()
        try:
            snapshot = None if self._state is None else self._state.snapshot()
            content = {
                "messages": self.messages,
                "tools": self._tools,
                "template": self._template,
                "fed": self._fed,
                "snapshot": snapshot,
            }
            saved.write(path, content, owner(self._model))
        finally:
            gate.leave()

    @classmethod
    def restore(cls, model: ChatModel, path: str | PathLike[str]) -> Conversation:
        """What `save` wrote, for the same bundle and device; anything else raises RequestError."""
        content = saved.read(path, owner(model))
        self = cls(model, tools=content["tools"], template=content["template"])
        self.messages, self._fed = content["messages"], content["fed"]
        if content["snapshot"] is None:
            return self
        model.gate.enter()
        try:
            self._state = model.session.new_state()
            self._state.restore(content["snapshot"])
            if self._state.length != len(self._fed):
                raise saved.damaged(path, f"{self._state.length} tokens of {len(self._fed)}")
        finally:
            model.gate.leave()
        return self

    def _ready(self, tokens: Sequence[int], params: Resolved) -> State:
        """The state, trimmed to what it shares with `tokens`, one of which is left to be fed."""
        session = self._model.session
        expected = expected_length(len(tokens), params.max_tokens, session.context)
        if self._state is None:
            self._state = session.new_state(expected)
        shared = self._state.rewind(common_prefix(self._fed, tokens[:-1]))
        self._state.expected = expected
        self._fed = self._fed[:shared]
        return self._state


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
