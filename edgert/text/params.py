"""Sampling parameters: what a caller may ask for, checked, and joined with the bundle's defaults.

This is the only place with defaults; the command line and the server pass on what they were given
and nothing else. `SamplingParams` is what was asked (None: not asked), `SamplingOptions` the same
as keywords, `Resolved` is what a generation runs with.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import msgspec

from .. import limits
from ..errors import RequestError
from ..storage.typed import Reader
from .param_checks import between, check_texts, plain

GREEDY_BELOW = 1e-5  # a temperature at or below it means "take the largest"
BREAKERS = ("\n", ":", '"', "*")  # where a repetition ends, for DRY: llama.cpp's


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keywords, for type checkers and editors:

        def ask(question: str, **options: Unpack[SamplingOptions]) -> str:
            return model.generate(question, **options).text

    None means the same as leaving it out.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    typical_p: float | None
    xtc_probability: float | None
    xtc_threshold: float | None
    dynatemp_range: float | None
    dynatemp_exponent: float | None
    temperature_last: bool | None
    repeat_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    dry_multiplier: float | None
    dry_base: float | None
    dry_allowed_length: int | None
    dry_penalty_last_n: int | None
    dry_sequence_breakers: str | Sequence[str] | None
    logit_bias: Mapping[int, float] | None
    logprobs: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    max_tokens: int | None


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters with nothing left open; `seed` is drawn when none was asked for."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    typical_p: float
    xtc_probability: float
    xtc_threshold: float
    dynatemp_range: float
    dynatemp_exponent: float
    temperature_last: bool
    repeat_penalty: float
    presence_penalty: float
    frequency_penalty: float
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_penalty_last_n: int
    dry_sequence_breakers: tuple[str, ...]
    logit_bias: dict[int, float]
    logprobs: int | None
    seed: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...]
    max_tokens: int | None

    @property
    def greedy(self) -> bool:
        """Whether the largest logit is taken: nothing that could drop it comes before."""
        if self.top_k == 1:
            return True
        if self.temperature + self.dynatemp_range > GREEDY_BELOW:
            return False
        return not (self.temperature_last and (self.typical_p < 1.0 or self.excludes))

    @property
    def whole(self) -> bool:
        """Whether no token is dropped."""
        cuts = (self.top_k, self.top_p, self.min_p, self.typical_p)
        return cuts == (0, 1.0, 0.0, 1.0) and not self.excludes

    @property
    def penalised(self) -> bool:
        asked = (self.repeat_penalty, self.presence_penalty, self.frequency_penalty)
        return asked != (1.0, 0.0, 0.0)

    @property
    def dry(self) -> bool:
        return self.dry_multiplier > 0.0 and self.dry_penalty_last_n != 0

    @property
    def excludes(self) -> bool:
        """Whether XTC may act: two tokens cannot both hold more than half."""
        return self.xtc_probability > 0.0 and self.xtc_threshold <= 0.5


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to choose tokens and when to stop. Every field may be left out.

    temperature: 0 takes the largest logit (ties: the lower id). top_k: 0 is off. top_p, min_p:
    probabilities. typical_p: keeps the tokens whose surprise is nearest to the expected one, until
    they hold this probability; 1 is off. xtc_probability: how often XTC drops all tokens of at
    least xtc_threshold but the least likely of them; 0 is off. dynatemp_range: the temperature
    moves from temperature - range to temperature + range with the entropy of what is left, raised
    to dynatemp_exponent; 0 is off. temperature_last: True lets the temperature act after top_k
    and the others, as llama.cpp does, and not before them, as transformers does.

    repeat_penalty divides positive logits of tokens seen so far (prompt included) and multiplies
    negative ones; presence_penalty and frequency_penalty are subtracted, once and per occurrence.
    DRY subtracts dry_multiplier * dry_base ** (n - dry_allowed_length) from a token that would
    repeat what stands in the last dry_penalty_last_n tokens (-1: all of them), n being the tokens
    repeated so far, from dry_allowed_length on; a repetition ends at dry_sequence_breakers.
    logit_bias: token id -> addend.

    seed: the same seed gives the same tokens. stop: texts that end the answer and are cut off.
    stop_token_ids: besides the model's own end tokens. max_tokens: None goes on until the model
    stops or the context is full. logprobs: 0 to 20, how many of the likeliest tokens the result
    lists at each position, besides the one taken; None lists nothing.

    Left out, temperature, top_k, top_p, min_p and repeat_penalty follow the bundle; a bundle
    without advice is greedy. Asking for top_k, top_p, min_p, typical_p, XTC or a dynamic
    temperature without a temperature means 1.0.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float = 1.0
    xtc_probability: float = 0.0
    xtc_threshold: float = 0.1
    dynatemp_range: float = 0.0
    dynatemp_exponent: float = 1.0
    temperature_last: bool = False
    repeat_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_penalty_last_n: int = -1
    dry_sequence_breakers: tuple[str, ...] = BREAKERS
    logit_bias: dict[int, float] = {}
    logprobs: int | None = None
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
        values = {key: plain(value) for key, value in given.items()}
        for name in ("stop", "dry_sequence_breakers"):
            if isinstance(values.get(name), str):
                values[name] = (values[name],)
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
        between("temperature", self.temperature, 0.0, limits.TEMPERATURE)
        between("top_k", self.top_k, 0, (1 << 31) - 1)
        between("top_p", self.top_p, 0.0, 1.0, open_low=True)
        between("min_p", self.min_p, 0.0, 1.0)
        between("typical_p", self.typical_p, 0.0, 1.0, open_low=True)
        between("xtc_probability", self.xtc_probability, 0.0, 1.0)
        between("xtc_threshold", self.xtc_threshold, 0.0, 1.0)
        between("dynatemp_range", self.dynatemp_range, 0.0, limits.TEMPERATURE)
        between("dynatemp_exponent", self.dynatemp_exponent, 0.0, limits.TEMPERATURE)
        between("repeat_penalty", self.repeat_penalty, 0.0, limits.REPEAT_PENALTY, open_low=True)
        between("presence_penalty", self.presence_penalty, -2.0, 2.0)
        between("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        between("dry_multiplier", self.dry_multiplier, 0.0, limits.REPEAT_PENALTY)
        between("dry_base", self.dry_base, 1.0, limits.REPEAT_PENALTY)
        between("dry_allowed_length", self.dry_allowed_length, 1, limits.CONTEXT_TOKENS)
        between("dry_penalty_last_n", self.dry_penalty_last_n, -1, limits.CONTEXT_TOKENS)
        check_texts("dry_sequence_breakers", "dry_sequence_breaker", self.dry_sequence_breakers)
        between("logprobs", self.logprobs, 0, limits.LOGPROBS)
        between("seed", self.seed, 0, (1 << limits.SEED_BITS) - 1)
        between("max_tokens", self.max_tokens, 1, limits.MAX_TOKENS)
        between("entries in logit_bias", len(self.logit_bias), 0, limits.LOGIT_BIAS_ENTRIES)
        for token, bias in self.logit_bias.items():
            between("logit_bias id", token, 0, vocab - 1)
            between(f"logit_bias of id {token}", bias, -100.0, 100.0)
        check_texts("stop", "stop string", self.stop)
        between("number of stop_token_ids", len(self.stop_token_ids), 0, limits.STOP_TOKEN_IDS)
        for token in self.stop_token_ids:
            between("stop_token_ids id", token, 0, vocab - 1)
        return self

    def resolved(self, advice: Mapping[str, Any]) -> Resolved:
        """Joined with a bundle's `generation` advice (generation_config.json's own names)."""
        if advice.get("do_sample", True) in (False, 0):
            advice = {k: v for k, v in advice.items() if k == "repetition_penalty"}
        asked = [self.top_k, self.top_p, self.min_p]
        advised = [advice.get(key) for key in ("top_k", "top_p", "min_p")]
        sampling = any(value is not None for value in asked + advised) or self.varied
        return Resolved(
            temperature=float(_first(self.temperature, advice.get("temperature"), float(sampling))),
            top_k=int(_first(self.top_k, advice.get("top_k"), 0)),
            top_p=float(_first(self.top_p, advice.get("top_p"), 1.0)),
            min_p=float(_first(self.min_p, advice.get("min_p"), 0.0)),
            repeat_penalty=float(
                _first(self.repeat_penalty, advice.get("repetition_penalty"), 1.0)
            ),
            seed=secrets.randbits(limits.SEED_BITS) if self.seed is None else self.seed,
            **{name: getattr(self, name) for name in _AS_ASKED},
        )

    @property
    def varied(self) -> bool:
        """Whether something is asked for that has a meaning only where tokens are drawn."""
        return self.typical_p < 1.0 or self.xtc_probability > 0.0 or self.dynatemp_range > 0.0


# Fields that no bundle gives advice about.
_ADVISED = {"temperature", "top_k", "top_p", "min_p", "repeat_penalty", "seed"}
_AS_ASKED = tuple(name for name in SamplingParams.__struct_fields__ if name not in _ADVISED)


_READER = Reader(SamplingParams)


def _first(*values: Any) -> Any:
    return next(value for value in values if value is not None)
