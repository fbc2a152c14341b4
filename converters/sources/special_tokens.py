"""The special tokens that a checkpoint names, from all places where transformers looks for them.

- tokenizer_config.json: bos_token, ...; any other key in "_token"; `extra_special_tokens`, a list
  or an object of roles; its older name `additional_special_tokens`, where the new one names
  nothing; `model_specific_special_tokens`, an object of roles, which counts only where nothing
  above gives a role.
- special_tokens_map.json: the same keys, which win; not read beside an added_tokens_decoder.
- Defaults of the tokenizer's class.

The order is that in which transformers appends those that the vocabulary does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

STANDARD = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
EXTRA, OLDER = "extra_special_tokens", "additional_special_tokens"
SPECIFIC = "model_specific_special_tokens"


class Named(NamedTuple):
    """Tokens as texts or as objects with flags. roles: by their names, the standard ones first;
    listed: those without a role."""

    roles: Mapping[str, Any]
    listed: tuple[Any, ...]

    def texts(self) -> dict[str, str]:
        """The roles' tokens as texts, as templates see them."""
        found = {role: text_of(token) for role, token in self.roles.items()}
        return {role: text for role, text in found.items() if text is not None}


def text_of(token: Any) -> str | None:
    """The text of a token that is given as such or as an object."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def named_tokens(
    config: Mapping[str, Any], special_map: Mapping[str, Any], defaults: Mapping[str, str]
) -> Named:
    """config: tokenizer_config.json; special_map: special_tokens_map.json; defaults: of the class,
    by role. Roles that are not standard among them are listed too, as CodeLlamaTokenizer does."""
    found = _configured(config)
    if "added_tokens_decoder" not in config:
        _join_map(found, special_map)
    found = {**defaults, **found}
    own = [found[role] for role in defaults if role not in STANDARD and found[role] is not None]
    if own:
        found[OLDER] = [*_list(found.get(OLDER)), *own]
    listed = found.get(EXTRA, found.get(OLDER))
    roles = {role: found[role] for role in STANDARD if text_of(found.get(role)) is not None}
    roles |= {
        key: token
        for key, token in found.items()
        if key not in STANDARD and key.endswith("_token") and text_of(token) is not None
    }
    return Named({**roles, **_dict(found.get(SPECIFIC))}, tuple(_list(listed)))


def _configured(config: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json, its further roles under SPECIFIC."""
    found = dict(config)
    if OLDER in found and not found.get(EXTRA):
        found[EXTRA] = found.pop(OLDER)
    others = [k for k, v in found.items() if k.endswith("_token") and isinstance(v, str)]
    roles = {key: found.pop(key) for key in others if key not in STANDARD}
    if isinstance(found.get(EXTRA), dict):
        roles |= found.pop(EXTRA)
    if roles:
        found[SPECIFIC] = roles
    return found


def _join_map(found: dict[str, Any], special_map: Mapping[str, Any]) -> None:
    """What special_tokens_map.json says, over tokenizer_config.json; lists are joined."""
    for key, value in special_map.items():
        if key == EXTRA and isinstance(value, list):
            before = _list(found.get(EXTRA))
            value = [{**t, "special": True} if isinstance(t, dict) else t for t in value]
            value = [*before, *(token for token in value if token not in before)]
        found[key] = value
    if isinstance(found.get(EXTRA), dict):
        found[SPECIFIC] = {**_dict(found.get(SPECIFIC)), **found.pop(EXTRA)}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
