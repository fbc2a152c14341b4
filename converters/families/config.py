"""Reading config.json with suspicion: typed, frozen, and no key goes unnoticed.

Every key of a config is a field of the family's `Config`, or fixed to values that this edgert
computes, or says nothing as `keys` has it. All faults are collected, so
that one error can name them all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from ... import limits
from ...errors import ConvertError
from ...storage.typed import Reader
from .keys import NEUTRAL, says_nothing


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """What every language model's config has. Sizes in elements."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    tie_word_embeddings: bool = False


class Decoder(Stack, frozen=True, kw_only=True):
    """What a config of layers with attention has besides. Context in tokens."""

    intermediate_size: int
    num_attention_heads: int
    max_position_embeddings: int
    num_key_value_heads: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_parameters: dict[str, Any] | None = None

    @property
    def kv_heads(self) -> int:
        return self.num_key_value_heads or self.num_attention_heads


T = TypeVar("T", bound=Stack)


@dataclass(frozen=True)
class Schema:
    """What a family accepts. architecture: the class name in `architectures`; also: others that
    mean the same."""

    architecture: str
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()
    also: tuple[str, ...] = ()

    @property
    def classes(self) -> list[list[str]]:
        """Values of `architectures` that the family reads."""
        base = self.architecture.replace("ForCausalLM", "Model")
        return [[name] for name in (self.architecture, base, *self.also)]


def read_config(raw: Mapping[str, Any], kind: type[T], schema: Schema, faults: list[str]) -> T:
    """The typed config; soft faults go into `faults`, unreadable fields raise ConvertError."""
    fields = {f.name: f for f in msgspec.structs.fields(kind)}
    _check_architecture(raw.get("architectures"), schema, faults)
    for key in raw:
        if key not in fields and key not in schema.ignored and not _no_window(key, raw, fields):
            _check_key(key, raw, schema, faults)
    values, broken = typed_values(raw, kind)
    if broken:
        raise refused([*broken, *faults])
    config = kind(**values)
    broken = _decoder_faults(config) if isinstance(config, Decoder) else size_faults(config, CAPS)
    if broken:
        raise refused([*broken, *faults])
    return config


def typed_values(
    raw: Mapping[str, Any], kind: type[msgspec.Struct]
) -> tuple[dict[str, Any], list[str]]:
    """The fields of a struct as a config has them, and faults of those that are missing or of
    another type."""
    values: dict[str, Any] = {}
    broken: list[str] = []
    for spec in msgspec.structs.fields(kind):
        name = spec.name
        if name not in raw:
            if spec.required:
                broken.append(f"config key {name!r} is missing")
            continue
        try:
            values[name] = Reader(spec.type).convert(raw[name])
        except msgspec.ValidationError as error:
            broken.append(f"config {name!r} is {short(raw[name])}: {error}")
    return values, broken


def _check_key(key: str, raw: Mapping[str, Any], schema: Schema, faults: list[str]) -> None:
    """A fault for a key that is no field, unless it says nothing."""
    value, fixed = raw[key], schema.fixed.get(key)
    if key == "quantization_config" and value is not None:
        faults.append("the checkpoint is quantized already, expected its float original")
    elif fixed is None:
        if not says_nothing(key, raw):
            allowed = " or ".join(map(short, NEUTRAL.get(key, ())))
            but = f", but for {allowed}" if allowed else ""
            faults.append(f"config key {key!r} (= {short(value)}) is unknown{but}")
    elif not any(type(value) is type(ok) and value == ok for ok in fixed):
        if value is None and not any(isinstance(ok, str) for ok in fixed):
            return  # transformers does not read it, or takes its default
        allowed = " or ".join(short(ok) for ok in fixed)
        faults.append(f"config {key!r} is {short(value)}, expected {allowed}")


def _no_window(key: str, raw: Mapping[str, Any], fields: Mapping[str, Any]) -> bool:
    """Keys of sliding windows beside a model without them, with values that mean there are none;
    `layer_types` of one kind, where that is the kind of all layers anyway."""
    off = "use_sliding_window" in raw and not raw["use_sliding_window"]
    field = fields.get("sliding_window")
    window = raw.get("sliding_window", None if field is None else field.default)
    if key == "use_sliding_window":
        return off
    if key == "sliding_window":
        return off or raw[key] is None
    if key in ("max_window_layers", "sliding_window_pattern", "_sliding_window_pattern"):
        return off or window is None
    if key != "layer_types" or "use_sliding_window" in fields:
        return False
    slides = field is not None and window is not None
    kinds = raw[key] if isinstance(raw[key], list) else []
    expected = "sliding_attention" if slides else "full_attention"
    return len(kinds) == raw.get("num_hidden_layers") and all(k == expected for k in kinds)


def _check_architecture(found: Any, schema: Schema, faults: list[str]) -> None:
    if found is not None and found not in schema.classes:
        faults.append(
            f"config 'architectures' is {short(found)}, expected [{schema.architecture!r}]"
        )


CAPS = {
    "vocab_size": limits.TENSOR_DIM - 1,
    "hidden_size": limits.TENSOR_DIM - 1,
    "num_hidden_layers": limits.LAYERS,
}
DECODER_CAPS = CAPS | {
    "intermediate_size": limits.TENSOR_DIM - 1,
    "num_attention_heads": limits.HEADS,
    "max_position_embeddings": limits.CONTEXT_TOKENS,
}


def size_faults(config: Any, caps: Mapping[str, int]) -> list[str]:
    """Sizes that no model has, by the largest that each may be; checked before anything is
    allocated from them."""
    sizes = ((name, getattr(config, name), cap) for name, cap in caps.items())
    return [
        f"config {name!r} is {n}, expected 1 to {cap}"
        for name, n, cap in sizes
        if not 1 <= n <= cap
    ]


def _decoder_faults(config: Decoder) -> list[str]:
    """The same of sizes that depend on each other."""
    sizes = {name: (getattr(config, name), cap) for name, cap in DECODER_CAPS.items()}
    sizes["num_key_value_heads"] = (config.kv_heads, limits.HEADS)
    head_dim = getattr(config, "head_dim", None)
    if head_dim is None and sizes["num_attention_heads"][0] > 0:
        head_dim = config.hidden_size // config.num_attention_heads
    sizes["head_dim"] = (head_dim, limits.HEAD_DIM)
    out = [
        f"config {name!r} is {n}, expected 1 to {cap}"
        for name, (n, cap) in sizes.items()
        if n is None or not 1 <= n <= cap
    ]
    if not out and config.num_attention_heads % config.kv_heads:
        out.append(
            f"config 'num_attention_heads' is {config.num_attention_heads}, expected a multiple of "
            f"'num_key_value_heads' {config.kv_heads}"
        )
    if not out and getattr(config, "head_dim", None) is None:
        if config.hidden_size % config.num_attention_heads:
            out.append(
                f"config 'hidden_size' is {config.hidden_size}, expected a multiple of "
                f"'num_attention_heads' {config.num_attention_heads}"
            )
    if not 0 < config.rms_norm_eps < 1:
        out.append(f"config 'rms_norm_eps' is {config.rms_norm_eps}, expected 0 to 1")
    return out


def short(value: Any) -> str:
    """A value for a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def refused(faults: list[str]) -> ConvertError:
    """The one error that lists everything found wrong with a checkpoint."""
    shown = faults[: limits.LISTED_FAULTS]
    more = len(faults) - len(shown)
    lines = "".join(f"\n  - {fault}" for fault in shown)
    lines += f"\n  - and {more} more" if more else ""
    count = "one fault" if len(faults) == 1 else f"{len(faults)} faults"
    return ConvertError(
        f"this checkpoint cannot be converted, {count} found:{lines}",
        code="checkpoint",
        hint="edgert converts only what it computes exactly; check that the checkpoint is complete "
        "and unmodified, or update edgert",
        faults=faults,
    )
