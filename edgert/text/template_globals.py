"""What a chat template can reach besides jinja2's own, as transformers offers it."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from jinja2.exceptions import SecurityError, TemplateError
from jinja2.utils import Namespace

from .sandbox import LimitError


class Rejected(TemplateError):
    """The template's own `raise_exception`."""


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
