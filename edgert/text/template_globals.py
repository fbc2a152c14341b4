"""What a chat template can reach besides jinja2's own, as transformers offers it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import datetime
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.utils import Namespace

from ..errors import RequestError
from .sandbox import DEEPEST, LimitError


class Rejected(TemplateError):
    """The template's own `raise_exception`."""


def plain_data(value: Any, *, strict: bool = False, path: str = "", depth: int = DEEPEST) -> Any:
    """JSON-like data made of Python's own types, also of dataclasses, models with `model_dump`
    (pydantic), attrs and msgspec classes, enumerations and NumPy scalars.

    Anything else becomes a text naming its type; RequestError where it is `strict`, and for what
    is nested more than `depth` deep. path: where the value stands, for that error.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if depth == 0:
        raise _refused(value, path, f"something nested more than {DEEPEST} deep")
    inner = partial(plain_data, strict=strict, depth=depth - 1)
    if isinstance(value, (list, tuple)):
        items = [inner(item, path=f"{path}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    fields = value if isinstance(value, Mapping) else _fields(value, path)
    if fields is not None:
        return {str(key): inner(item, path=f"{path}.{key}") for key, item in fields.items()}
    if isinstance(value, Enum):
        return inner(value.value, path=path)
    if isinstance(value, np.generic):
        return inner(value.item(), path=path)
    if strict:
        raise _refused(value, path, "text, numbers, lists and objects of such")
    return f"<{type(value).__name__}>"


def _fields(value: Any, path: str) -> Mapping[str, Any] | None:
    """An object of a client library as a mapping, None for other objects."""
    if isinstance(value, type):
        return None
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclass_fields(value)}
    kind = type(value)  # msgspec lists names, attrs lists attributes
    listed = getattr(kind, "__struct_fields__", None) or getattr(kind, "__attrs_attrs__", None)
    if isinstance(listed, tuple):
        names = [str(getattr(field, "name", field)) for field in listed]
        return {name: getattr(value, name) for name in names}
    dump = getattr(value, "model_dump", None)
    if not callable(dump):
        return None
    try:
        found = dump()
    except Exception as error:  # foreign code
        raise _refused(value, path, f"an object that dumps ({type(error).__name__})") from error
    return found if isinstance(found, Mapping) else None


def _refused(value: Any, path: str, expected: str) -> RequestError:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return RequestError(
        f"{path or 'a value'} is of type {kind.removeprefix('builtins.')}, expected {expected}",
        code="messages",
        hint="turn it into text or plain data first",
        field=path,
    )


def tojson(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as transformers has it."""
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: Any) -> None:
    raise Rejected(str(message)[:1000])


def strftime_now(format: str) -> str:
    if len(format) > 256 or re.search(r"%\W*\d", format):
        raise LimitError("strftime_now with a long format or a width")
    return datetime.now().strftime(format)


class MakeDict:
    """The `dict` global: makes dictionaries and shows nothing of the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class SafeNamespace(Namespace):
    """jinja2's namespace, without underscore names and without a way to print it."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that namespace(self=...) works
        attrs = dict(*args[1:], **kwargs)
        for name in attrs:
            _public(name)
        Namespace.__init__(args[0], attrs)

    def __setitem__(self, name: str, value: Any) -> None:
        _public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:  # its content may have grown since it was weighed
        return "<namespace>"


def _public(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


GLOBALS = {
    "raise_exception": raise_exception,
    "strftime_now": strftime_now,
    "dict": MakeDict(),
    "namespace": SafeNamespace,
}
