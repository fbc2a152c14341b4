"""The chat templates of a checkpoint, in transformers' order of files.

    chat_template.jinja and additional_chat_templates/NAME.jinja    before
    chat_template.json                                              before
    chat_template in tokenizer_config.json

Each of the last two is one text, or a list of named ones. Of all names two have a meaning:
"default", and "tool_use", which renders chats with tools.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ... import limits
from ...errors import ConvertError
from ...notices import notice

DEFAULT, TOOL_USE = "default", "tool_use"
FILES = {DEFAULT: "chat_template.jinja", TOOL_USE: "chat_template.tool_use.jinja"}
# name -> its file in a checkpoint
SOURCES = {DEFAULT: "chat_template.jinja", TOOL_USE: "additional_chat_templates/tool_use.jinja"}


class TemplateFiles(Protocol):
    """What is read of a checkpoint folder."""

    texts: dict[str, bytes]
    tokenizer_config: dict[str, Any]
    template_json: dict[str, Any]


def chat_templates(source: TemplateFiles) -> dict[str, str]:
    """Templates by name; raises ConvertError for what is no text."""
    named: dict[str, Any] = {
        name: _decoded(source.texts[file], file)
        for name, file in SOURCES.items()
        if file in source.texts
    }
    if not named:
        key = "chat_template"
        named = _named(source.template_json.get(key, source.tokenizer_config.get(key)))
    if named and DEFAULT not in named:
        notice(
            f"chat templates {sorted(named)[:4]}, none called 'default': the model does not chat"
        )
        return {}
    return {name: _checked(named[name]) for name in FILES if name in named}


def _named(found: Any) -> dict[str, Any]:
    if isinstance(found, dict):
        return found
    if not isinstance(found, list):
        return {} if found is None else {DEFAULT: found}
    if not all(isinstance(entry, Mapping) and "name" in entry for entry in found):
        raise ConvertError(
            f"chat_template lists {str(found)[:60]}, expected objects of a name and a template",
            code="template",
            hint="the tokenizer's files are damaged; download them again",
        )
    return {str(entry["name"]): entry.get("template") for entry in found}


def _checked(found: Any) -> str:
    if not isinstance(found, str) or len(found.encode("utf-8")) > limits.TEMPLATE_BYTES:
        raise ConvertError(
            f"chat_template is a {type(found).__name__} of {len(str(found))} characters, expected "
            f"text of at most {limits.TEMPLATE_BYTES} bytes",
            code="template",
            hint="the tokenizer's files are damaged; download them again",
        )
    return found


def _decoded(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConvertError(
            f"{name} is not UTF-8: {error}", code="template", hint="download the file again"
        ) from None
