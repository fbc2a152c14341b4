"""How a checkpoint asks to be decoded: sampling defaults, and what edgert does not do.

transformers reads generation_config.json, or where there is none, the same keys of config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import limits
from ...notices import notice

SAMPLING: Mapping[str, tuple[float, float]] = {  # name: lowest and highest value
    "temperature": (0.0, limits.TEMPERATURE),
    "top_k": (0, (1 << 31) - 1),
    "top_p": (1e-9, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (1e-9, limits.REPEAT_PENALTY),
}
OFF: Mapping[str, float | int] = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}
Neutral = tuple[Any, ...]
NOTHING: Neutral = (None, False, 0, [], {}, "")
ONE: Neutral = (*NOTHING, 1)
# What else transformers does with an answer where the key has none of the neutral values. Bounds of
# its length are the caller's business, here as in every other runtime.
UNDONE: Mapping[str, tuple[str, Neutral]] = {
    "bad_words_ids": ("bars sequences of tokens", NOTHING),
    "begin_suppress_tokens": ("bars tokens at the beginning", NOTHING),
    "constraints": ("demands tokens", NOTHING),
    "diversity_penalty": ("sets beams apart", NOTHING),
    "dola_layers": ("contrasts layers", NOTHING),
    "encoder_no_repeat_ngram_size": ("bars what the prompt says", NOTHING),
    "encoder_repetition_penalty": ("favours what the prompt says", ONE),
    "exponential_decay_length_penalty": ("favours an end after some length", NOTHING),
    "force_words_ids": ("demands words", NOTHING),
    "forced_bos_token_id": ("sets the first token", (None,)),
    "forced_decoder_ids": ("sets tokens", NOTHING),
    "forced_eos_token_id": ("sets the last token", (None,)),
    "guidance_scale": ("guides by a second prompt", ONE),
    "mirostat": ("holds the surprise", NOTHING),
    "max_time": ("bounds the time", (None,)),
    "min_length": ("bars an early end", NOTHING),
    "min_new_tokens": ("bars an early end", NOTHING),
    "no_repeat_ngram_size": ("bars repeated sequences of tokens", NOTHING),
    "num_beam_groups": ("searches with beams", ONE),
    "num_beams": ("searches with beams", ONE),
    "num_return_sequences": ("gives several answers", ONE),
    "penalty_last_n": ("penalises repetitions of the last tokens alone", (None, 0, -1)),
    "penalty_alpha": ("searches contrastively", NOTHING),
    "sequence": ("orders samplers", NOTHING),
    "sequence_bias": ("favours or disfavours sequences of tokens", NOTHING),
    "stop_strings": ("ends at texts", NOTHING),
    "suppress_tokens": ("bars tokens", NOTHING),
    "token_healing": ("changes the end of the prompt", NOTHING),
    "watermarking_config": ("marks the text", NOTHING),
    "xtc_probability": ("drops likely tokens at times", NOTHING),
}
# The same, of answers that are sampled.
UNDONE_SAMPLING: Mapping[str, tuple[str, Neutral]] = {
    "epsilon_cutoff": ("bars unlikely tokens", ONE),
    "eta_cutoff": ("bars unlikely tokens", ONE),
    "top_h": ("bars tokens by entropy", NOTHING),
    "typical_p": ("bars untypical tokens", ONE),
}


def sampling_defaults(
    asked: Mapping[str, Any], file: str, faults: list[str]
) -> dict[str, float | int]:
    """What a file asks for; nothing but the penalty unless it says do_sample. file: its name, for
    messages. Values without a sense go into `faults`; what is not done is a notice."""
    out: dict[str, float | int] = {}
    for key, (low, high) in SAMPLING.items():
        value = _read(key, asked.get(key), file)
        if value is None:
            continue
        kinds = (int,) if key == "top_k" else (int, float)
        if key == "top_p" and type(value) in kinds and value == 0:
            out["top_k"] = 1  # transformers keeps the likeliest token
            notice(f"{file} 'top_p' is {value}, which is taken as top_k 1")
        elif type(value) in kinds and low <= value <= high:
            out[key] = value
        else:
            faults.append(f"{file} {key!r} is {str(value)[:40]!r}, expected {low} to {high}")
    sampled = asked.get("do_sample") is True
    _tell_undone(asked, file, {**UNDONE, **(UNDONE_SAMPLING if sampled else {})})
    if not sampled:
        return {key: out[key] for key in ("repetition_penalty",) if key in out}
    return {"temperature": 1.0, "top_k": 50, "top_p": 1.0} | out


def _read(key: str, value: Any, file: str) -> Any:
    """A value as other programs mean it, with a notice where transformers would not take it."""
    if type(value) not in (int, float) or key not in OFF:
        return value
    meant: float | int | None = None
    if value < 0 or (key == "top_p" and value > 1) or (key == "top_k" and value >= 1 << 31):
        meant = OFF[key]
    elif key == "top_k" and type(value) is float and value.is_integer():
        meant = int(value)
    if meant is None:
        return value
    if (key, value) != ("top_k", -1):  # a usual way to write "off"
        off = "off" if meant == OFF[key] else str(meant)
        notice(f"{file} {key!r} is {str(value)[:40]}, which is taken as {off}")
    return meant


def _tell_undone(
    asked: Mapping[str, Any], file: str, table: Mapping[str, tuple[str, Neutral]]
) -> None:
    """One notice that names what edgert leaves undone."""
    found = [
        f"{key} = {_short(asked[key])} ({effect})"
        for key, (effect, neutral) in table.items()
        if key in asked and not any(asked[key] == value for value in neutral)
    ]
    if found:
        notice(f"{file} asks for what edgert does not do, answers come without: {', '.join(found)}")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."
