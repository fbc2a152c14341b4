"""What callers give to a chat template, as data of Python's own types: made once, then rendered and
checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from enum import Enum
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np

from ..errors import RequestError
from .sandbox import DEEPEST

_DATA = "text, numbers, lists, and dictionaries, dataclasses or models of such"
_PATH = 60  # characters of a place that an error shows


class Chat(NamedTuple):
    """A template's input. variables: those that were given, documents among them."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    variables: dict[str, Any]

    @classmethod
    def of(cls, messages: Any, tools: Any, variables: Mapping[str, Any]) -> Chat:
        """Raises RequestError for what is no data, and for messages that are none. A message's key,
        a part's and a variable whose value is None count as not given."""
        given = {str(name): value for name, value in variables.items() if value is not None}
        for name, value in (("messages", messages), ("tools", tools)):
            _check_list(name, value)
        _check_list("documents", given.get("documents"))
        if not messages:
            raise RequestError(
                "the list of messages is empty, expected one or more",
                code="messages-empty",
                hint='give at least [{"role": "user", "content": "..."}]',
            )
        return cls(
            [_message(message, f"messages[{i}]") for i, message in enumerate(messages)],
            None if tools is None else plain_data(list(tools), path="tools"),
            {name: plain_data(value, path=name) for name, value in given.items()},
        )


def _check_list(name: str, value: Any) -> None:
    """Raises RequestError unless it is a list (or tuple) of objects."""
    if value is None and name != "messages":
        return
    if not isinstance(value, (list, tuple)) or _is_record(value):
        raise RequestError(
            f"{name} is of type {type(value).__name__}, expected a list of objects",
            code="parameter-type",
            hint=f"{name} goes in as a list, also where it is only one",
            field=name,
        )


def _message(message: Any, where: str) -> dict[str, Any]:
    whole = plain_data(message, path=where)
    if not isinstance(whole, dict) or not isinstance(whole.get("role"), str):
        raise RequestError(
            f"message {where[9:-1]} is {str(whole)[:80]!r}, expected an object with a text `role`",
            code="messages",
            hint='a message looks like {"role": "user", "content": "..."}',
            field=where,
        )
    content = whole.get("content")
    if not isinstance(content, (str, list, tuple, dict)) and content is not None:
        raise RequestError(
            f"message {where[9:-1]} has content of type {type(content).__name__}, expected text or "
            "a list of parts",
            code="messages",
            hint="turn it into text first",
            field=f"{where}.content",
        )
    if isinstance(content, (list, tuple)):
        whole["content"] = type(content)(map(_given, content))
    elif isinstance(content, dict):
        whole["content"] = _given(content)
    return {key: value for key, value in whole.items() if value is not None}


def _given(part: Any) -> Any:
    """A part without keys whose value is None: objects of client libraries have many of them."""
    if not isinstance(part, dict):
        return part
    return {key: value for key, value in part.items() if value is not None}


def plain_data(value: Any, *, path: str = "", depth: int = DEEPEST) -> Any:
    """JSON-like data made of Python's own types, also of dataclasses, named tuples, models with
    `model_dump` (pydantic), attrs and msgspec classes, enumerations and NumPy scalars.

    Raises RequestError for anything else and for what is nested more than `depth` deep. path: where
    the value stands, for that error.
    """
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, Enum):
        for kind in (str, int, float):
            if isinstance(value, kind):
                return value if type(value) is kind else _exact(kind, value)
    if depth == 0:
        raise _refused(value, path, f"nothing nested more than {DEEPEST} deep, nor in itself")
    inner = partial(plain_data, depth=depth - 1)
    if isinstance(value, Enum):
        return inner(value.value, path=path)
    if isinstance(value, np.generic):
        return inner(value.item(), path=path)
    if isinstance(value, (list, tuple)) and not _is_record(value):
        items = [inner(item, path=f"{path}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    try:
        fields = _fields(value)
    except Exception as error:  # foreign code
        expected = f"an object whose fields can be read ({type(error).__name__})"
        raise _refused(value, path, expected) from error
    if fields is None:
        raise _refused(value, path, _DATA)
    if not isinstance(fields, dict):
        return inner(fields, path=path)
    found = {_key(key, path): inner(item, path=f"{path}.{key!s}") for key, item in fields.items()}
    if len(found) < len(fields):
        raise _refused(value, path, "keys that differ when they are texts")
    return found


def _exact(kind: type, value: Any) -> Any:
    """A number or text of a subclass as its base class has it, whatever the subclass prints."""
    if kind is str:
        return str.__str__(value)
    return int.__int__(value) if kind is int else float.__float__(value)


def _key(key: Any, path: str) -> str:
    key = plain_data(key, path=path) if isinstance(key, (Enum, np.generic)) else key
    if isinstance(key, str):
        return str.__str__(key)
    if key is not None and not isinstance(key, (int, float)):
        raise _refused(key, f"{path}.{str(key)[:20]}", "a key that is text")
    return str(key)


def _is_record(value: Any) -> bool:
    """Whether it is a named tuple."""
    return isinstance(value, tuple) and hasattr(type(value), "_fields")


def _fields(value: Any) -> Any:
    """An object of a client library as a dictionary, or what it dumps; None for other objects."""
    kind = type(value)
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, type):
        return None
    if is_dataclass(value):
        names = [field.name for field in dataclass_fields(value)]
    else:  # named tuples and msgspec list names, attrs lists attributes
        listed = kind._fields if _is_record(value) else getattr(kind, "__struct_fields__", None)
        listed = getattr(kind, "__attrs_attrs__", None) if listed is None else listed
        if not isinstance(listed, tuple):
            return _dumped(value)
        names = [str(getattr(field, "name", field)) for field in listed]
    found = {name: getattr(value, name) for name in names}
    return {name: item for name, item in found.items() if item is not msgspec.UNSET}


def _dumped(value: Any) -> Any:
    """What a pydantic model, of version 1 too, says of itself; None for other objects."""
    dump = getattr(value, "model_dump", None)
    if dump is None and hasattr(type(value), "__fields__"):
        dump = getattr(value, "dict", None)
    return dump() if callable(dump) else None


def _refused(value: Any, path: str, expected: str) -> RequestError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    place = path if len(path) <= _PATH else f"{path[:_PATH]}…"
    return RequestError(
        f"{place or 'a value'} is of type {kind}, expected {expected}",
        code="messages",
        hint="turn it into text or plain data first",
        field=place,
    )
