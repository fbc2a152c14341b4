"""Sampling parameters: what a caller may ask for, checked, and joined with the bundle's defaults.

This is the only place with defaults; the command line and the server pass on what they were given
and nothing else. `SamplingParams` is what was asked (None: not asked), `Resolved` is
what a generation runs with.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from .. import limits
from ..errors import RequestError
from ..storage.typed import Reader

GREEDY_BELOW = 1e-5  # a temperature at or below it means "take the largest"


class Resolved(msgspec.Struct, frozen=True):
    """Parameters with nothing left open; `seed` is drawn when none was asked for."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: dict[int, float]
    seed: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    max_tokens: int | None

    @property
    def greedy(self) -> bool:
        return self.temperature <= GREEDY_BELOW or self.top_k == 1

    @property
    def penalised(self) -> bool:
        asked = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return asked != (1.0, 0.0, 0.0)


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to choose tokens and when to stop. Every field may be left out.

    temperature: 0 takes the largest logit (ties: the lower id). top_k: 0 is off. top_p, min_p:
    probabilities. repeat_penalty divides positive logits of tokens seen so far (prompt included)
    and multiplies negative ones; presence_penalty and frequency_penalty are subtracted, once and
    per occurrence. logit_bias: token id -> addend. seed: the same seed gives the same tokens.
    stop: texts that end the answer and are cut off. stop_token_ids: besides the model's own end
    tokens. max_tokens: None goes on until the model stops or the context is full.

    Left out, temperature, top_k, top_p, min_p and repeat_penalty follow the bundle; a bundle
    without advice is greedy. Asking for top_k, top_p or min_p without a temperature means 1.0.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = None

    @classmethod
    def of(cls, **given: Any) -> SamplingParams:
        """Parameters from keywords; unknown names and wrong types raise RequestError."""
        fields = cls.__struct_fields__
        unknown = sorted(set(given) - set(fields))
        if unknown:
            raise RequestError(
                f"unknown parameters {unknown}, expected some of {list(fields)}",
                code="parameter-name",
                hint="help(edgert.SamplingParams) says what each one means",
                field=unknown[0],
            )
        values = {key: _plain(value) for key, value in given.items()}
        if isinstance(values.get("stop"), str):
            values["stop"] = (values["stop"],)
        values = {key: value for key, value in values.items() if value is not None}
        try:
            return _READER.convert(values)
        except msgspec.ValidationError as error:
            raise RequestError(
                f"parameter of a wrong type: {error}",
                code="parameter-type",
                hint="help(edgert.SamplingParams) lists names and types",
            ) from None

    def checked(self, vocab: int) -> SamplingParams:
        """Itself, once every value lies in its range; raises RequestError naming field and range.

        vocab: number of token ids that exist.
        """
        _between("temperature", self.temperature, 0.0, limits.TEMPERATURE)
        _between("top_k", self.top_k, 0, (1 << 31) - 1)
        _between("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _between("min_p", self.min_p, 0.0, 1.0)
        _between("repeat_penalty", self.repeat_penalty, 0.0, limits.REPEAT_PENALTY, open_low=True)
        _between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _between("seed", self.seed, 0, (1 << limits.SEED_BITS) - 1)
        _between("max_tokens", self.max_tokens, 1, limits.MAX_TOKENS)
        _between("entries in logit_bias", len(self.logit_bias), 0, limits.LOGIT_BIAS_ENTRIES)
        for token, bias in self.logit_bias.items():
            _between("logit_bias id", token, 0, vocab - 1)
            _between(f"logit_bias of id {token}", bias, -100.0, 100.0)
        _between("number of stop strings", len(self.stop), 0, limits.STOP_STRINGS)
        for text in self.stop:
            _between("characters in a stop string", len(text), 1, limits.STOP_STRING_CHARACTERS)
        _between("number of stop_token_ids", len(self.stop_token_ids), 0, limits.STOP_TOKEN_IDS)
        for token in self.stop_token_ids:
            _between("stop_token_ids id", token, 0, vocab - 1)
        return self

    def resolved(self, advice: Mapping[str, Any]) -> Resolved:
        """Joined with a bundle's `generation` advice (generation_config.json's own names)."""
        if advice.get("do_sample", True) in (False, 0):
            advice = {k: v for k, v in advice.items() if k == "repetition_penalty"}
        asked = [self.top_k, self.top_p, self.min_p]
        advised = [advice.get(key) for key in ("top_k", "top_p", "min_p")]
        sampling = any(value is not None for value in asked + advised)
        return Resolved(
            temperature=float(_first(self.temperature, advice.get("temperature"), float(sampling))),
            top_k=int(_first(self.top_k, advice.get("top_k"), 0)),
            top_p=float(_first(self.top_p, advice.get("top_p"), 1.0)),
            min_p=float(_first(self.min_p, advice.get("min_p"), 0.0)),
            repeat_penalty=float(
                _first(self.repeat_penalty, advice.get("repetition_penalty"), 1.0)
            ),
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
            seed=secrets.randbits(limits.SEED_BITS) if self.seed is None else self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            max_tokens=self.max_tokens,
        )


_READER = Reader(SamplingParams)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)


def _plain(value: Any) -> Any:
    """NumPy scalars and arrays as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value


def _between(
    field: str, value: float | None, low: float, high: float, *, open_low: bool = False
) -> None:
    """Raise RequestError unless value is None or in [low, high] (or (low, high])."""
    if value is None or (
        math.isfinite(value) and low <= value <= high and not (open_low and value == low)
    ):
        return
    bounds = f"{'more than' if open_low else 'from'} {low} {'up ' if open_low else ''}to {high}"
    raise RequestError(
        f"{field} is {value}, expected {bounds}",
        code="parameter-range",
        hint="choose a value in that range, or leave it out for the default",
        field=field.split()[-1],
    )
