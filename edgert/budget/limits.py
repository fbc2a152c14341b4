"""What a budget says: limits by name, in a TOML file or as keywords.

    p90_token_ms = 40                       # the next token, nothing before it
    p90_ttft_ms = { 128 = 150, 512 = 500 }  # the first token, by length of the prompt
    tokens_per_s = 20                       # at least
    peak_mb = 900

A number stands for the usual place; a table gives a limit for each number of tokens.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import msgspec

from .. import limits
from ..errors import RequestError

Kind = Literal["token", "prompt", "process", "picture", "power"]
LARGEST = 1e12
BURST = 16  # tokens that are timed one after another
INTEGERS = range(-(1 << 63), 1 << 63)  # of TOML


class Metric(msgspec.Struct, frozen=True):
    """Something that has a limit. unit: of it. quantile: of its samples. least: whether the limit
    is a least. tokens: what a bare number is for: depth (kind token) or length of the prompt; None:
    has no such number. scale: units in what is measured, seconds, bytes or watts."""

    kind: Kind
    unit: str
    quantile: float = 0.5
    least: bool = False
    tokens: int | None = None
    scale: float = 1.0


_TIMES: tuple[tuple[str, Kind, int], ...] = (("token", "token", 0), ("ttft", "prompt", 512))
METRICS: dict[str, Metric] = {
    f"p{q}_{name}_ms": Metric(kind, "ms", q / 100, tokens=tokens, scale=1e3)
    for name, kind, tokens in _TIMES
    for q in (50, 90, 99)
}
METRICS |= {
    "tokens_per_s": Metric("token", "1/s", least=True, tokens=0),
    "load_s": Metric("process", "s"),
    "cold_start_s": Metric("process", "s"),
    "peak_mb": Metric("process", "MB", scale=1e-6),
    "picture_s": Metric("picture", "s"),
    "watts": Metric("power", "W", tokens=0),
}


class Limit(msgspec.Struct, frozen=True):
    """One limit: of a metric, for a number of tokens where it has one."""

    name: str
    value: float
    tokens: int | None = None

    @property
    def metric(self) -> Metric:
        return METRICS[self.name]

    @property
    def label(self) -> str:
        """As "p90_token_ms at 4096"."""
        return self.name if self.tokens is None else f"{self.name} at {self.tokens}"

    @property
    def needs(self) -> int:
        """Tokens of a context that measuring it takes, 0 for what takes none."""
        if self.tokens is None:
            return 0
        return self.tokens + (1 if self.metric.kind == "prompt" else BURST + 1)

    def unfit(self, kind: str, context: int | None = None) -> str:
        """Why a bundle of a kind, with a context of so many tokens, has nothing that this limits;
        "" where it has."""
        if self.metric.kind != "process" and (self.metric.kind == "picture") != (kind == "image"):
            does = "draw" if self.metric.kind == "picture" else "write"
            return f"of models that {does}, this one is of the kind {kind}"
        if context is not None and self.needs > context:
            return f"needs {self.needs} tokens, the context holds {context}"
        return ""

    def kept(self, value: float) -> bool:
        """Whether a value, in the limit's unit, keeps it."""
        return value >= self.value if self.metric.least else value <= self.value


def budget_of(asked: Mapping[str, Any], where: str = "the budget") -> tuple[Limit, ...]:
    """Limits by name. Raises RequestError with everything that is wrong."""
    found: list[Limit] = []
    faults: list[str] = []
    for name, value in asked.items():
        metric = METRICS.get(name) if isinstance(name, str) else None
        if metric is None:
            near = get_close_matches(shown(name), METRICS, n=1)
            faults.append(
                f"{shown(name)!r} is no limit"
                + (f", did you mean {near[0]!r}?" if near else f", expected some of {[*METRICS]}")
            )
        elif isinstance(value, Mapping):
            found += _table(name, metric, value, faults)
        elif _number(value):
            found.append(Limit(name, float(value), metric.tokens))
        else:
            faults.append(f"{name} is {shown(value)!r}, expected a number above 0")
    if not found and not faults:
        faults.append("it holds no limits")
    if faults:
        raise RequestError(
            f"{where}: {'; '.join(faults[:12])}", code="budget",
            hint="a budget is, for example, p90_token_ms = 40 and peak_mb = 900",
        )  # fmt: skip
    return tuple(found)


def _table(name: str, metric: Metric, value: Mapping[Any, Any], faults: list[str]) -> list[Limit]:
    out = []
    seen = set[int]()
    for key, limit in value.items():
        text = shown(key)
        if metric.tokens is None:
            faults.append(f"{name} has no number of tokens, expected a plain number")
        elif (
            not text.isdecimal()  # long ones are cut, and end in no digit
            or int(text) > limits.CONTEXT_TOKENS
            or (metric.kind == "prompt" and int(text) == 0)
        ):
            faults.append(f"{name} has a limit for {text!r}, expected a number of tokens")
        elif int(text) in seen:
            faults.append(f"{name} has two limits for {int(text)} tokens, expected one")
        elif not _number(limit):
            faults.append(f"{name} at {text} is {shown(limit)!r}, expected a number above 0")
        else:
            seen.add(int(text))
            out.append(Limit(name, float(limit), int(text)))
    return out


def _number(value: object) -> bool:
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return plain and 0 < value <= LARGEST  # type: ignore[operator]


def shown(value: object, most: int = 40) -> str:
    """A value of a user in a message, of any size."""
    try:
        text = str(value)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= most else f"{text[:most]}…"


def joined(first: Sequence[Limit], over: Sequence[Limit]) -> tuple[Limit, ...]:
    """All limits; those of `over` in place of others of their name and number of tokens."""
    found = {(limit.name, limit.tokens): limit for limit in (*first, *over)}
    return tuple(found.values())


def read_budget(path: Path) -> tuple[Limit, ...]:
    """The limits in a TOML file."""
    return budget_of(read_toml(path, "budget"), str(path))


def read_toml(path: Path, code: str) -> dict[str, Any]:
    """A small TOML file of a user; RequestError with `code` for what is none, or holds an integer
    of more than 64 bits."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            data = file.read(limits.PROFILE_BYTES + 1)
        if len(data) > limits.PROFILE_BYTES:
            raise ValueError(f"more than {limits.PROFILE_BYTES} bytes")
        found = tomllib.loads(data.decode("utf-8-sig"))
        _check_integers(found)
        return found
    except OSError as error:
        raise RequestError(
            f"{path}: {error.strerror or error}, expected a TOML file", code=code,
            hint="check the path and its permissions",
        ) from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"{path}: no TOML: {str(error)[:200]}", code=code, hint="correct the file"
        ) from None


def _check_integers(found: dict[str, Any]) -> None:
    """ValueError for integers, anywhere, that TOML does not promise to read."""
    left: list[Any] = [found]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left += value.values()
        elif isinstance(value, list):
            left += value
        elif isinstance(value, int) and value not in INTEGERS:
            raise ValueError(f"an integer of {value.bit_length()} bits, expected at most 64")
