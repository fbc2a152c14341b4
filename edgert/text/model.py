"""A model that writes text: one session with its tokenizer and chat template."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .. import limits
from ..errors import RequestError
from ..kernels.states import RecurrentState
from ..session.base import Session, State
from ..session.engine import Engine
from ..session.options import SessionOptions
from ..session.prompt_cache import open_prefixes
from .adapters import AdapterPath, Adapters
from .conversation import Conversation
from .generate import Progress, Run
from .logits import LogitsLane, run_lane
from .params import Resolved, SamplingOptions, SamplingParams
from .relay import Relay, RelayOptions, RelayRun, checked
from .relay_guard import GuardedRun
from .results import Generation
from .speculative.head import HeadModel, has_head, open_head
from .speculative.options import WORDS, Draft, Drafting, DraftOptions, not_opened
from .speculative.proposer import Proposer
from .speculative.small import SmallProposer
from .stopping import with_stop_tokens
from .stream import AsyncStream, Stream
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it from Python 3.11 on

    from ..bundle.reader import Bundle
    from .options import ChatOptions, PromptOptions
    from .template import ChatTemplate

Message = Mapping[str, Any]
Prompt = str | Sequence[int]


class TextModel:
    """A model that writes text. Make one with `edgert.load`; close it or use it in a with block.

    Any number of threads and asyncio tasks may use it at the same time: their answers are computed
    together, token by token, and each is what it would have been alone. Where too many wait, the
    next raises RequestError (code "queue-full"). Closing the model while it answers makes those
    answers raise RequestError (code "closed").
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
        draft: Any = "none",
        opened: Callable[[Path], TextModel] | None = None,
        head: Callable[[], HeadModel] | None = None,
    ) -> None:
        """advice: sampling defaults of the bundle. draft: what requests draft with that do not say
        it, as for `edgert.load`; opened(path) opens a small model for that, head() the draft head.
        The session and bundle are closed with it, and what was opened."""
        self.session, self.tokenizer, self.template = session, tokenizer, template
        self.name, self.advice, self.fingerprint = name, dict(advice or {}), fingerprint
        self.load_s, self._bundle, self._freed = 0.0, bundle, False
        self.adapters = Adapters(session, bundle)
        self.engine = Engine(session)
        self.drafting = Drafting(
            tokenizer, self.engine.costs, session.device, opened=opened or not_opened, head=head
        )
        self.drafting.default = DraftOptions.of(draft, self.drafting.default)
        self._redo = any(
            isinstance(state, RecurrentState) and not state.tail
            for state in session.graph.states.values()
        )
        self._latest: weakref.ref[Run] | None = None

    @classmethod
    def from_bundle(
        cls, bundle: Bundle, options: SessionOptions, *, draft: Any = "none"
    ) -> TextModel:
        """The model of an open bundle, which is closed with it; draft as for `edgert.load`. Raises
        BundleError, DeviceError, RequestError, ResourceError; the bundle then stays open."""
        from ..session import open_session

        tokenizer = Tokenizer.from_bundle(bundle)
        template = None
        if bundle.manifest.text_spec.chat_template is not None:  # else jinja2 is not imported
            from .template import ChatTemplate

            template = ChatTemplate.from_bundle(bundle, tokenizer)
        default = DraftOptions.of(draft, DraftOptions("none"))
        session = open_session(bundle, options)
        has = has_head(bundle)
        model = cls(
            session,
            tokenizer,
            template,
            name=bundle.manifest.name,
            advice=bundle.manifest.text_spec.generation,
            fingerprint=bundle.fingerprint,
            bundle=bundle,
            draft=default,
            opened=lambda path: _small(path, options),
            head=(lambda: open_head(bundle, options, tokenizer, session)) if has else None,
        )
        try:
            model.engine.prefixes = open_prefixes(model.session, bundle, options)
            for source in default.sources:
                usual = source == "auto" and model.session.device == "cpu" and has
                if source == "head" or usual:  # now, not at the first request
                    model.drafting.head()
                elif source not in WORDS:
                    model.drafting.small(source)
        except BaseException:
            model._bundle = None
            model.close()
            raise
        return model

    @property
    def context(self) -> int:
        """Tokens that one sequence may hold, prompt and answer together."""
        return self.session.context

    def generate(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> Generation:
        """Continue a text or token ids; options as for `stream`."""
        return self.stream(prompt, **options).finish()

    def stream(
        self,
        prompt: Prompt,
        *,
        special: bool = False,
        draft: Draft | None = None,
        proposer: Proposer | None = None,
        relay: RelayOptions | None = None,
        progress: Progress | None = None,
        context_shift: bool = False,
        adapter: AdapterPath | None = None,
        **params: Unpack[SamplingOptions],
    ) -> Stream:
        """Continue a text or token ids, piece by piece.

        params: the fields of `SamplingParams`. special: special-token texts in the prompt act as
        such. draft: what to draft with, as for `edgert.load`; None for the model's own default.
        proposer: drafts of your own instead. relay: a small model writes a part, which changes the
        text (`edgert.text.relay`). progress(done, total): called between chunks of a long
        prompt. context_shift: go on when the context is full, without the older half of it but for
        its first tokens. adapter: the folder of a LoRA adapter to compute it with. Parameters and
        prompt are checked before this returns: RequestError.
        """
        self.engine.check()
        tokens = self._prompt_ids(prompt, special=special)
        run = self.run(
            tokens, params, draft=draft, proposer=proposer, relay=relay, progress=progress,
            joined=True, shift=context_shift, adapter=adapter,
        )  # fmt: skip
        return Stream(self.engine, run)

    async def agenerate(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> Generation:
        """`generate` for asyncio."""
        return await self.astream(prompt, **options).finish()

    def astream(self, prompt: Prompt, **options: Unpack[PromptOptions]) -> AsyncStream:
        """`stream` for asyncio: `async for piece in model.astream(...)`."""
        return self.stream(prompt, **options).to_async()

    def chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> Generation:
        """Answer a list of {"role", "content"} messages; options as for `stream_chat`."""
        return self.stream_chat(messages, **options).finish()

    def stream_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
        draft: Draft | None = None,
        proposer: Proposer | None = None,
        relay: RelayOptions | None = None,
        progress: Progress | None = None,
        context_shift: bool = False,
        adapter: AdapterPath | None = None,
        **params: Unpack[SamplingOptions],
    ) -> Stream:
        """Answer messages, piece by piece. template: variables for the chat template, such as
        {"enable_thinking": False}; the others as for `stream`."""
        self.engine.check()
        tokens = self.chat_ids(messages, tools=tools, template=template)
        run = self.run(
            tokens, params, draft=draft, proposer=proposer, relay=relay, progress=progress,
            shift=context_shift, adapter=adapter,
        )  # fmt: skip
        return Stream(self.engine, run)

    async def achat(
        self, messages: Sequence[Message], **options: Unpack[ChatOptions]
    ) -> Generation:
        """`chat` for asyncio."""
        return await self.astream_chat(messages, **options).finish()

    def astream_chat(
        self, messages: Sequence[Message], **options: Unpack[ChatOptions]
    ) -> AsyncStream:
        """`stream_chat` for asyncio: `async for piece in model.astream_chat(...)`."""
        return self.stream_chat(messages, **options).to_async()

    def chat_ids(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of messages in the model's chat template, ready for an answer. Raises
        RequestError for models without one, for messages that it rejects, and for tools, variables,
        keys and parts of messages that it does not read."""
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
        segments = self.template.render_checked(messages, tools, variables)
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
        context_shift: bool = False,
        adapter: AdapterPath | None = None,
    ) -> Conversation:
        """A chat that remembers: messages, and the work done on them. context_shift: leave out the
        oldest turns, and then the older half of an answer, where it is full. adapter: of all."""
        self.engine.check()
        return Conversation(
            self, system, tools=tools, template=template, shift=context_shift, adapter=adapter
        )

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
        lane = LogitsLane(ids)
        run_lane(self.engine, lane)
        return np.concatenate(lane.rows)

    def tokenize(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Token ids of a text as `generate` would feed it. special: special-token texts act as
        such; bos: with the beginning token, where the model wants one."""
        return self.tokenizer.encode(text, special=special, bos=bos)

    def detokenize(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of token ids; special: with special tokens shown."""
        return self.tokenizer.decode(token_ids, special=special)

    def cancel(self) -> None:
        """Stop the request that was made last, if it has not ended, from any thread; its
        finish_reason is "cancelled". `Stream.cancel` stops a certain one."""
        run = None if self._latest is None else self._latest()
        if run is not None and not run.done:
            run.cancelled = True
            self.engine.poke()

    def close(self) -> None:
        """Free everything. Answers being written raise RequestError. Twice is allowed."""
        self.engine.close(self._free)

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

    def run(
        self,
        tokens: Sequence[int],
        params: Mapping[str, Any],
        *,
        start: Callable[[Run], State] | None = None,
        draft: Draft | None = None,
        proposer: Proposer | None = None,
        relay: RelayOptions | None = None,
        adapter: AdapterPath | None = None,
        **options: Any,
    ) -> Run:
        """A request as a lane, not submitted yet. start: gives its state, by default a new one with
        the adapter; options as for `Run`. Raises RequestError."""
        resolved = self.checked_params(params).resolved(self.advice)
        key = self.adapters.key(adapter)
        make: Callable[..., Run] = Run
        if relay is not None:
            checked(relay)
            kind = RelayRun if relay.guard is None else partial(GuardedRun, guard=relay.guard)
            make = partial(kind, relay=Relay(relay), small=self._relayed(relay, resolved))
        run = make(
            self.tokenizer,
            tokens,
            resolved,
            context=self.context,
            prefixes=self.engine.prefixes,
            speculation=self.drafting.speculation(draft, resolved, proposer, redo=self._redo),
            start=start or (lambda run: self.adapters.begin(len(run.sequence), key)),
            load_s=self.load_s,
            **options,
        )
        self._latest = weakref.ref(run)
        return run

    def _relayed(self, relay: RelayOptions, params: Resolved) -> SmallProposer:
        small = self.drafting.small(relay.small)
        return small.proposer(params, verify="coupled", controller=None)

    def _free(self) -> None:
        if not self._freed:
            self._freed = True
            self.drafting.close()
            if self.engine.prefixes is not None:
                self.engine.prefixes.close()
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


def _small(path: Path, options: SessionOptions) -> TextModel:
    """A small model to draft with: opened as the large one, with its own context."""
    from ..bundle.reader import Bundle

    bundle = Bundle.open(path)
    try:
        options = replace(options, ctx_size=None, prompt_cache=None, prompt_cache_size=None)
        return TextModel.from_bundle(bundle, options)
    except BaseException:
        bundle.close()
        raise
