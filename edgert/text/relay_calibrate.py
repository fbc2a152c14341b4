"""`edgert relay-calibrate`: find the cues at which a small model may take over from a large one.

    found = calibrate_relay(large, small, problems=[[{"role": "user", "content": "..."}], ...])
    write_cues("cues.json", found)
    large.chat(messages, relay=RelayOptions(small, cues=found.cues))

The large model answers the problems, or brings traces that it wrote before; the small one reads the
thinking of each trace once, and cues are those behind which it is sure (`relay_margins`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import RequestError
from ..notices import NOTICE, notice
from ..session.base import Feed, Session, StepResult
from .logits import LogitsLane, run_lane
from .relay import CLOSE, LOOK_BACK, check_cues
from .relay_cues import CANDIDATES, RelayCues
from .relay_margins import ERRORS, LEAST, Measured, margins, score, select
from .speculative.small import check_same

if TYPE_CHECKING:
    from .model import TextModel
    from .stream import Stream

Chat = Sequence[Mapping[str, Any]]  # messages
Progress = Callable[[str, int, int], None]
_CHATS = 'give chats, one a line: {"messages": [{"role": "user", "content": "..."}, ...]}'
AT_ONCE = 4  # problems that are answered together


@dataclass(frozen=True)
class CalibrateOptions:
    """How cues are found.

    candidates: texts that may become cues. least, errors: see `select`. close: the text that ends
    thinking; what follows is not measured. Of traces that are made: repeats of each problem, with
    seeds from `seed` on; max_tokens of each, None for the context; temperature, top_p, top_k.
    Raises RequestError for values that mean nothing.
    """

    candidates: tuple[str, ...] = CANDIDATES
    least: int = LEAST
    errors: float = ERRORS
    close: str = CLOSE
    repeats: int = 4
    max_tokens: int | None = None
    temperature: float = 0.6
    top_p: float = 0.95
    top_k: int = 20
    seed: int = 42

    def __post_init__(self) -> None:
        check_cues(self.candidates, "candidates of relay cues")
        wrong = {
            "least": (self.least >= 1, "1 or more"),
            "errors": (0 <= self.errors < float("inf"), "0 or more"),
            "repeats": (self.repeats >= 1, "1 or more"),
            "close": (0 < len(self.close) <= LOOK_BACK, f"1 to {LOOK_BACK} characters"),
        }
        for name, (right, expected) in wrong.items():
            if not right:
                raise _wrong(f"relay-calibrate {name} is {getattr(self, name)!r}", expected)


class Trace(NamedTuple):
    """What the large model wrote to a prompt. messages: the prompt's. number: its place."""

    messages: Chat
    prompt: Sequence[int]
    written: Sequence[int]
    number: int


def calibrate_relay(
    large: TextModel,
    small: TextModel,
    *,
    traces: Sequence[Chat] = (),
    problems: Sequence[Chat] = (),
    options: CalibrateOptions | None = None,
    keep: Callable[[list[Trace]], None] = lambda traces: None,
    progress: Progress = lambda what, done, total: None,
) -> RelayCues:
    """The cues that fit two models of one tokenizer.

    traces: chats that end with an answer of the large model, thinking first; or problems: chats
    that it is to answer. keep: called with the traces once they are there. progress(what, done,
    total): of the answers, then of the measured traces. Raises RequestError for models of unlike
    tokenizers, chats that are none of these, answers with more than a text, traces longer than the
    small model's context, and traces without a token of thinking. A notice tells how many have no
    text that ends it: they count whole.
    """
    options = options or CalibrateOptions()
    _check_tokenizers(large, small)
    if bool(traces) == bool(problems):
        given = f"{len(traces)} traces and {len(problems)} problems"
        raise _wrong(given, "traces of the large model, or problems for it")
    made = _read(large, traces) if traces else _written(large, problems, options, progress)
    keep(made)
    measured = []
    for trace in made:
        measured.append(_measured(small, trace, options.close))
        progress("traces measured", len(measured), len(made))
    whole = [len(one.pieces) == len(t.written) for one, t in zip(measured, made, strict=True)]
    if any(whole):
        notice(
            f"{sum(whole)} of {len(made)} traces have no {options.close!r} behind the thinking: "
            "their whole answers count as thinking",
            NOTICE,
        )
    every = np.concatenate([one.margins for one in measured])
    if not len(every):
        raise _wrong(f"{len(made)} traces have 0 tokens of thinking", "1 or more")
    scores = score(measured, options.candidates)
    return RelayCues(
        cues=select(scores, least=options.least, errors=options.errors),
        large=large.name,
        small=small.name,
        traces=len(made),
        tokens=len(every),
        margin=float(every.mean()),
        scores=tuple(sorted(scores, key=lambda one: (-one.inside, one.cue))),
    )


def read_chats(path: str | Path) -> list[Chat]:
    """Chats of a file: JSON lines as `edgert draft --data` reads them, or plain text with a problem
    a line. Raises ConvertError for a file that is none."""
    from ..converters.calibrate import chats_of
    from ..converters.calibration_text import read_text

    chats = Path(path).suffix.lower() == ".jsonl"
    text = read_text(path, _CHATS if chats else "give questions, one a line")
    if chats:
        return list(chats_of(text, str(path)))
    return [[{"role": "user", "content": line}] for line in text.splitlines() if line.strip()]


def chats_to_lines(large: TextModel, traces: Sequence[Trace]) -> str:
    """Traces as JSON lines that `read_chats` reads again."""
    lines = []
    for trace in traces:
        answer = large.detokenize(trace.written, special=True)
        messages = [*map(dict, trace.messages), {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": messages}, ensure_ascii=False))
    return "".join(f"{line}\n" for line in lines)


def _wrong(found: str, expected: str) -> RequestError:
    return RequestError(
        f"{found}, expected {expected}",
        code="relay-calibrate",
        hint="edgert relay-calibrate --help says what each one means",
    )


def _check_tokenizers(large: TextModel, small: TextModel) -> None:
    try:
        check_same(small.tokenizer, large.tokenizer, small.name)
    except RequestError as error:
        error.hint = "take two models of the same family, with one tokenizer"
        raise


def _prompt(large: TextModel, messages: Chat, what: str, number: int) -> list[int]:
    """Ids of a chat that waits for an answer."""
    try:
        if not messages or messages[-1].get("role") == "assistant":
            raise _wrong("no message is left to be answered", "a question first")
        return large.chat_ids(list(messages))
    except RequestError as error:
        raise RequestError(
            f"{what} {number}: {error.message}", code=error.code, hint=error.hint
        ) from None


def _read(large: TextModel, chats: Sequence[Chat]) -> list[Trace]:
    found = []
    for number, chat in enumerate(chats, 1):
        last = chat[-1] if chat else {}
        text = last.get("content")
        more = [key for key in last if key not in ("role", "content") and last[key] is not None]
        if more:
            raise RequestError(
                f"trace {number}: its answer has {more[0][:40]!r}, expected role and content alone",
                code="relay-calibrate",
                hint="put the thinking into the content, in front of the answer, with the text "
                f"that ends it ({CLOSE}) between them",
            )
        if last.get("role") != "assistant" or not isinstance(text, str) or not text:
            raise _wrong(
                f"trace {number} ends with {str(dict(last))[:80]}",
                "an answer: a message of the role assistant with a text",
            )
        prompt = _prompt(large, chat[:-1], "trace", number)
        found.append(
            Trace(chat[:-1], prompt, large.tokenize(text, special=True, bos=False), number)
        )
    return found


def _written(
    large: TextModel, chats: Sequence[Chat], options: CalibrateOptions, progress: Progress
) -> list[Trace]:
    """Answers of the large model, in order, some of which are written at a time."""
    prompts = [_prompt(large, chat, "problem", number) for number, chat in enumerate(chats, 1)]
    asked = [(at, time) for at in range(len(chats)) for time in range(options.repeats)]
    ends = set(large.tokenizer.eos_token_ids)
    found: dict[int, Trace] = {}
    live: dict[int, Stream] = {}
    with ExitStack() as stack:

        def begin(job: int) -> None:
            at, time = asked[job]
            live[job] = stack.enter_context(large.stream(
                prompts[at], max_tokens=options.max_tokens, temperature=options.temperature,
                top_p=options.top_p, top_k=options.top_k, seed=options.seed + time,
            ))  # fmt: skip

        waiting = iter(range(len(asked)))
        for job in _some(waiting, AT_ONCE):
            begin(job)
        while live:
            for job, stream in list(live.items()):
                if next(stream, None) is not None:
                    continue
                del live[job]
                at = asked[job][0]
                ids = [token for token in stream.result.token_ids if token not in ends]
                found[job] = Trace(chats[at], prompts[at], ids, job + 1)
                progress("answers", len(found), len(asked))
                for following in _some(waiting, 1):
                    begin(following)
    return [found[job] for job in sorted(found)]


def _some(jobs: Iterator[int], count: int) -> list[int]:
    return [job for _, job in zip(range(count), jobs, strict=False)]


def _measured(small: TextModel, trace: Trace, close: str) -> Measured:
    """Margins of the small model at each token of the thinking."""
    pieces = _thinking(small, trace.written, close)
    if not pieces:
        return Measured([], np.zeros(0))
    ids = np.asarray([*trace.prompt, *trace.written[: len(pieces)]], np.int32)
    if len(ids) > small.context + 1:  # the last token is only foretold
        raise RequestError(
            f"trace {trace.number} has {len(ids)} tokens, the context of the small model holds "
            f"{small.context}",
            code="context",
            hint="leave it out, or ask for shorter ones with --max-tokens",
        )
    lane = _MarginLane(ids[:-1], len(trace.prompt) - 1)
    run_lane(small.engine, lane)
    return Measured(pieces, np.concatenate(lane.margins))


def _thinking(model: TextModel, written: Sequence[int], close: str) -> list[str]:
    """Texts of the tokens, in front of the text that ends thinking."""
    stream = model.tokenizer.stream()
    pieces = [stream.push(token) for token in written]
    end = "".join(pieces).find(close)
    if end < 0:
        return pieces
    length, kept = 0, list[str]()
    for piece in pieces:
        length += len(piece)
        if length > end:
            break
        kept.append(piece)
    return kept


class _MarginLane(LogitsLane):
    """Feeds `ids` and keeps, of the logits from token `first` on, no more than their margins."""

    def __init__(self, ids: NDArray[np.int32], first: int) -> None:
        super().__init__(ids)
        self.first, self.margins = first, list[NDArray[np.float64]]()

    def feed(self, rows: int, logits: int) -> Feed | None:
        state = self.state
        if state is None or state.length >= self.first:
            return super().feed(rows, logits)
        piece = self.ids[state.length : min(self.first, state.length + rows)]
        return Feed(state, piece, "none")

    def open(self, session: Session) -> None:
        super().open(session)
        self.margins = []

    def take(self, feed: Feed, result: StepResult) -> None:
        super().take(feed, result)
        self.rows.clear()
        if feed.logits == "all":
            self.margins.append(margins(result.logits))
