"""What callers ask for: which drafts, how many, how they are checked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any, NoReturn, Protocol, Union

from ...errors import RequestError
from ...session.base import Session
from ...session.costs import StepCosts
from ..params import Resolved
from ..tokenizer import Tokenizer
from .controller import LONGEST, Controller, Past
from .cycle import Speculation
from .head import HeadModel, no_head
from .ngram import NGramProposer
from .proposer import Proposer
from .small import SmallModel
from .verify import VERIFY, Verify


class Loaded(Protocol):
    """What drafting needs of a loaded model; `TextModel` has it."""

    name: str

    @property
    def session(self) -> Session: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    def close(self) -> None: ...


Source = Union[str, "PathLike[str]", Loaded]
Draft = Union[Source, Sequence[Source], "DraftOptions"]  # what a caller may give as `draft`
MAX_TOKENS = 7  # drafted in one step, unless told otherwise: with the anchor a tile of 8 rows
OVERRIDE = 4  # tokens that must agree before the text's own continuation goes before a model's
WORDS = ("auto", "none", "ngram", "head")


@dataclass(frozen=True)
class DraftOptions:
    """Which drafts a model checks while it writes; they change its speed, not its answers.

    source: "ngram" (what followed the last time that the text went on like this), "head" (the
    bundle's own draft head), a smaller model with the same tokenizer as a bundle's path or a loaded
    `TextModel`, several in a sequence (the text goes first), "none", or "auto": on the cpu "ngram",
    and "head" where there is one, none elsewhere. max_tokens: drafted for one
    step at most, 1 to 16. verify: "coupled" gives the very text that the same seed gives without
    drafts; "rejection" gives texts of the same law, which depend on the drafts. adapt: draft as
    many as pay by what is measured, none where none do; False always drafts max_tokens.

    Raises RequestError for values that mean nothing.
    """

    source: Source | Sequence[Source] = "auto"
    max_tokens: int = MAX_TOKENS
    verify: Verify = "coupled"
    adapt: bool = True

    def __post_init__(self) -> None:
        whole = hasattr(self.max_tokens, "__index__") and not isinstance(self.max_tokens, bool)
        if not whole or not 1 <= self.max_tokens <= LONGEST:
            raise _error("draft max_tokens", self.max_tokens, f"1 to {LONGEST}")
        if self.verify not in VERIFY:
            raise _error("draft verify", self.verify, "'coupled' or 'rejection'")
        if not isinstance(self.adapt, bool):
            raise _error("draft adapt", self.adapt, "True or False")
        for source in self.sources:
            _check_source(source)
        if len(self.sources) > 1 and {"none", "auto"} & {s for s in self.sources if _is_word(s)}:
            raise _error("draft", list(self.sources), "'none' or 'auto' alone")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The source, or all of them."""
        several = isinstance(self.source, Sequence) and not isinstance(self.source, str)
        return tuple(self.source) if several else (self.source,)  # type: ignore[arg-type, return-value]

    @classmethod
    def of(cls, given: Any, default: DraftOptions) -> DraftOptions:
        """What a caller gave as `draft`: options, a source, or None for the default."""
        if given is None:
            return default
        return given if isinstance(given, cls) else replace(default, source=given)


def is_model(source: Any) -> bool:
    """Whether it is a path, or a loaded model that writes text."""
    if isinstance(source, (str, PathLike)):
        return bool(fspath(source))
    return hasattr(source, "session") and hasattr(source, "tokenizer")


def _check_source(source: Any) -> None:
    if is_model(source):
        return
    raise _error(
        "draft",
        source,
        "'ngram', 'head', 'none', 'auto', a bundle's path or a loaded model that writes",
    )


def _is_word(source: Any) -> bool:
    return isinstance(source, str) and source in WORDS


def _error(name: str, value: object, expected: str) -> RequestError:
    return RequestError(
        f"{name} is {str(value)[:80]!r}, expected {expected}",
        code="parameter-type" if name == "draft" else "parameter-range",
        hint="help(edgert.DraftOptions) says what each one means",
        field="draft",
    )


class Drafting:
    """The drafts of one model: its default, the small models that were opened for it, costs.

    opened(path): a small model's session and tokenizer, and what closes them. head: opens the
    bundle's draft head, None where it has none.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        costs: StepCosts,
        device: str,
        *,
        opened: Callable[[Path], Loaded],
        head: Callable[[], HeadModel] | None = None,
    ) -> None:
        self.default = DraftOptions("none")
        self._tokenizer, self._costs, self._device = tokenizer, costs, device
        self._opened, self._open_head = opened, head
        self._past = {greedy: Past() for greedy in (False, True)}
        self._head: HeadModel | None = None
        self._small: dict[object, tuple[Source, SmallModel]] = {}  # a kept source keeps its id
        self._lock = threading.Lock()

    def speculation(
        self, given: Any, params: Resolved, proposer: Proposer | None, *, redo: bool
    ) -> Speculation | None:
        """Of a request: what `draft=` and `proposer=` ask for. A proposer of the caller's own
        decides its lengths itself. Raises RequestError, BundleError."""
        if proposer is not None:
            if given is not None:
                raise _error("draft", given, "None beside a proposer of your own")
            return Speculation([proposer], limit=LONGEST)
        options = DraftOptions.of(given, self.default)
        sources = [s for s in options.sources if s != "none"]
        if sources == ["auto"]:
            sources = ["ngram"] if self._device == "cpu" else []
            sources += ["head"] if sources and self._open_head is not None else []
        if not sources:
            return None
        controller = None
        if "head" in sources:
            self.head()  # what it is worth was measured when it was made
        if options.adapt:
            past = self._past[params.greedy]
            controller = Controller(self._costs, options.max_tokens, redo=redo, past=past)
        proposers: list[Proposer] = []
        if "ngram" in sources:
            proposers.append(NGramProposer(OVERRIDE if len(sources) > 1 else 0))
        for source in sources:
            if source != "ngram":
                maker = self.head() if source == "head" else self.small(source)
                made = maker.proposer(params, verify=options.verify, controller=controller)
                proposers.append(made)
        return Speculation(
            proposers, limit=options.max_tokens, verify=options.verify, controller=controller
        )

    def head(self) -> HeadModel:
        """The bundle's draft head, opened once. Raises RequestError where there is none."""
        with self._lock:
            if self._head is None:
                if self._open_head is None:
                    raise no_head("")
                self._head = self._open_head()
                for greedy, share in self._head.accepted.items():
                    self._past[greedy] = Past(share)
            return self._head

    def small(self, source: Source) -> SmallModel:
        """The small model of a path or a loaded model, opened once."""
        loaded = hasattr(source, "session")
        key: object = id(source) if loaded else Path(fspath(source)).resolve()  # type: ignore[arg-type]
        with self._lock:
            if key not in self._small:
                self._small[key] = source, self._new(source, loaded=loaded)
            return self._small[key][1]

    def _new(self, source: Any, *, loaded: bool) -> SmallModel:
        model: Loaded = source if loaded else self._opened(Path(fspath(source)))
        close = None if loaded else model.close
        try:
            return SmallModel(
                model.session, model.tokenizer, self._tokenizer, name=model.name, close=close
            )
        except BaseException:
            if close is not None:
                close()
            raise

    def close(self) -> None:
        """Close the small models that were opened here."""
        with self._lock:
            small, self._small = self._small, {}
            head, self._head = self._head, None
        if head is not None:
            head.close()
        for _, model in small.values():
            model.close()


def not_opened(path: Path) -> NoReturn:
    """The error of a model made by hand that is to open another one."""
    raise RequestError(
        f"draft is {str(path)!r}, expected a loaded model, for this one was made by hand",
        code="parameter-type",
        hint="pass edgert.load(...) of the small model",
        field="draft",
    )
