"""A model that writes text: one session with its tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import RequestError
from ..session.base import Feed, Session, State
from ..session.options import SessionOptions
from .conversation import Conversation
from .generate import Progress, Proposer, Run, check_room, expected_length
from .params import Resolved, SamplingParams
from .results import Generation
from .stopping import with_stop_tokens
from .stream import Gate, Stream
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from ..bundle.reader import Bundle
    from .template import ChatTemplate

Message = Mapping[str, Any]
Prompt = str | Sequence[int]


class TextModel:
    """A model that writes text. Make one with `edgert.load`; close it or use it in a with block.

    Any thread may use it; answers are serialised: a second thread waits until the first is done,
    a second stream in the same thread is a RequestError. `cancel` works from any thread, within
    one token. Closing it while it answers makes that answer raise RequestError (code "closed").
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        template: ChatTemplate | None = None,
        *,
        name: str = "",
        advice: Mapping[str, Any] | None = None,
        fingerprint: str = "",
        bundle: Bundle | None = None,
    ) -> None:
        """advice: sampling defaults of the bundle. The session and bundle are closed with it."""
        self.session, self.tokenizer, self.template = session, tokenizer, template
        self.name, self.advice, self.fingerprint = name, dict(advice or {}), fingerprint
        self.load_s = 0.0
        self._bundle, self.gate, self._freed = bundle, Gate(), False

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: SessionOptions) -> TextModel:
        """The model of an open bundle, which is closed with it. Raises BundleError, DeviceError,
        ResourceError; the bundle then stays open."""
        from ..session import open_session

        tokenizer = Tokenizer.from_bundle(bundle)
        template = None
        if bundle.manifest.text_spec.chat_template is not None:  # else jinja2 is not imported
            from .template import ChatTemplate

            template = ChatTemplate.from_bundle(bundle, tokenizer)
        return cls(
            open_session(bundle, options),
            tokenizer,
            template,
            name=bundle.manifest.name,
            advice=bundle.manifest.text_spec.generation,
            fingerprint=bundle.fingerprint,
            bundle=bundle,
        )

    @property
    def context(self) -> int:
        """Tokens that one sequence may hold, prompt and answer together."""
        return self.session.context

    def generate(self, prompt: Prompt, **options: Any) -> Generation:
        """Continue a text or token ids; options as for `stream`."""
        return self.stream(prompt, **options).finish()

    def stream(
        self,
        prompt: Prompt,
        *,
        special: bool = False,
        proposer: Proposer | None = None,
        progress: Progress | None = None,
        **params: Any,
    ) -> Stream:
        """Continue a text or token ids, piece by piece.

        params: the fields of `SamplingParams`. special: special-token texts in the prompt act as
        such. progress(done, total): called between chunks of a long prompt. Parameters and prompt
        are checked before this returns: RequestError.
        """
        self.gate.check_open()
        tokens = self._prompt_ids(prompt, special=special)
        return self._answer(tokens, params, proposer=proposer, progress=progress, joined=True)

    def _answer(self, tokens: list[int], params: Mapping[str, Any], **options: Any) -> Stream:
        """A stream on a state of its own; options as for `run`."""
        asked = self.checked_params(params)
        check_room(len(tokens), asked.max_tokens, self.context)
        resolved = asked.resolved(self.advice)

        def start() -> Run:
            expected = expected_length(len(tokens), resolved.max_tokens, self.context)
            return self.run(self.session.new_state(expected), tokens, resolved, **options)

        return Stream(self.gate, start, lambda run: self._end(run.state))

    def chat(self, messages: Sequence[Message], **options: Any) -> Generation:
        """Answer a list of {"role", "content"} messages; options as for `stream_chat`."""
        return self.stream_chat(messages, **options).finish()

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        proposer: Proposer | None = None,
        progress: Progress | None = None,
        **params: Any,
    ) -> Stream:
        """Answer messages, piece by piece. template: variables for the chat template, such as
        {"enable_thinking": False}; the others as for `stream`."""
        self.gate.check_open()
        tokens = self.chat_ids(messages, tools=tools, template=template)
        return self._answer(tokens, params, proposer=proposer, progress=progress)

    def chat_ids(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of messages in the model's chat template, ready for an answer. Raises
        RequestError for models without one, for messages that it rejects, and for tools, variables
        and message keys that it does not read."""
        if self.template is None:
            raise RequestError(
                f"{self.name or 'this model'} has no chat template",
                code="no-template",
                hint="use generate with a plain prompt; a base model does not chat",
            )
        variables = {} if template is None else template
        if not isinstance(variables, Mapping) or {"messages", "tools"} & set(variables):
            raise RequestError(
                f"template is {str(template)[:80]!r}, expected variables such as "
                "{'enable_thinking': False}",
                code="parameter-type",
                hint="messages and tools have arguments of their own",
                field="template",
            )
        named = {str(name): value for name, value in variables.items()}
        segments = self.template.render(messages, tools=tools, **named)
        self.template.check_use(messages, tools=tools, **named)
        return self.tokenizer.encode_segments(segments)

    def restore(self, path: str | PathLike[str]) -> Conversation:
        """A conversation that `Conversation.save` wrote. Raises RequestError for files of another
        model, quantisation or version and for damaged ones."""
        return Conversation.restore(self, path)

    def conversation(
        self,
        system: str | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> Conversation:
        """A chat that remembers: messages, and the work done on them."""
        self.gate.check_open()
        return Conversation(self, system, tools=tools, template=template)

    def logits(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits float32 [T, V] after each of T tokens, each from 0 to V - 1: also one of the ids
        by which a model's vocabulary may be wider than its tokenizer's."""
        width = self.session.vocab_size
        ids = np.asarray(self.tokenizer.check_ids(token_ids, width), np.int32)
        if not 1 <= len(ids) <= self.context:
            raise RequestError(
                f"{len(ids)} tokens, expected 1 to {self.context}",
                code="context",
                hint="score a long text in pieces; see `edgert eval`",
            )
        self.gate.enter()
        state = self.session.new_state(len(ids))
        try:
            rows = np.empty((len(ids), width), np.float32)
            for at in range(0, len(ids), self.session.max_rows):
                chunk = ids[at : at + self.session.max_rows]
                (result,) = self.session.step([Feed(state, chunk, "all")])
                rows[at : at + len(chunk)] = result.logits
                state.commit(len(chunk))
            return rows
        finally:
            self._end(state)
            self.gate.leave()

    def tokenize(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Token ids of a text as `generate` would feed it. special: special-token texts act as
        such; bos: with the beginning token, where the model wants one."""
        return self.tokenizer.encode(text, special=special, bos=bos)

    def detokenize(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; special: with special tokens shown."""
        return self.tokenizer.decode(token_ids, special=special)

    def cancel(self) -> None:
        """Stop the answer being written, from any thread; its finish_reason is "cancelled"."""
        self.gate.cancel.set()

    def close(self) -> None:
        """Free everything. An answer being written raises RequestError. Twice is allowed."""
        if self.gate.close():
            self._free()

    def checked_params(self, params: Mapping[str, Any]) -> SamplingParams:
        """SamplingParams of keywords, checked for this model; raises RequestError."""
        checked = SamplingParams.of(**params).checked(self.tokenizer.size)
        return with_stop_tokens(checked, self.tokenizer)

    def _prompt_ids(self, prompt: Prompt, *, special: bool) -> list[int]:
        if not isinstance(prompt, str):
            return self.tokenizer.check_ids(prompt)
        longest = self.context * limits.PROMPT_CHARACTERS_PER_TOKEN
        if len(prompt) > longest:
            raise RequestError(
                f"the prompt has {len(prompt)} characters, the context of {self.context} tokens "
                f"holds {longest} at the very most",
                code="context",
                hint="shorten the prompt, or load with a larger ctx_size if the model allows it",
            )
        return self.tokenize(prompt, special=special)

    def run(self, state: State, tokens: Sequence[int], params: Resolved, **options: Any) -> Run:
        """A run of this model on a state; what `Stream` starts inside the gate."""
        return Run(
            self.session,
            state,
            self.tokenizer,
            tokens,
            params,
            cancelled=self.gate.cancel.is_set,
            load_s=self.load_s,
            **options,
        )

    def _end(self, state: State) -> None:
        state.close()
        self.after_use()

    def after_use(self) -> None:
        """Free a model that was closed while it answered; called inside the gate."""
        if self.gate.closed:
            self._free()

    def _free(self) -> None:
        if not self._freed:
            self._freed = True
            self.session.close()
            if self._bundle is not None:
                self._bundle.close()

    def __enter__(self) -> TextModel:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
