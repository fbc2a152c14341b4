"""What a chat template reads: whatever a caller gives that it does not is an error, not lost.

Names are looked for in the template's source. A key of a message or of a content part that is not
mentioned there may still come out (`message | tojson`), so the chat is then rendered without it:
only what makes no difference is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import meta, nodes

from ..errors import RequestError

Messages = Sequence[Mapping[str, Any]]

REASONING = ("reasoning_content", "thinking", "reasoning")  # names in use for the same field
PLAIN = frozenset({"role", "content", "type", "text"})
# Numbers by which programs match calls with results; templates get these by their order.
BOOKKEEPING = frozenset({"id", "index", "tool_call_id"})
_TRIED = 16  # keys, one by one


class TemplateUse:
    """The names in a template's syntax tree. where: the template's file, for messages."""

    def __init__(self, tree: nodes.Template, where: str) -> None:
        self._where = where
        self._loaded = meta.find_undeclared_variables(tree)
        self._mentioned = {node.attr for node in tree.find_all(nodes.Getattr)}
        texts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        self._mentioned |= texts

    def check(
        self,
        messages: Messages,
        tools: Sequence[Any] | None,
        variables: Mapping[str, Any],
        render: Callable[[Messages], Any],
    ) -> None:
        """Raises RequestError that names tools, variables and keys of messages which the template
        does not read. render: the chat of other messages, with the same tools and variables."""
        if tools and "tools" not in self._loaded:
            raise self._unread("tools", ["tools"], "a model whose template knows tools, or the "
                               "system message, can describe them")  # fmt: skip
        unknown = sorted(set(variables) - self._loaded)
        if unknown:
            raise self._unread("variables", unknown, "leave them out; `chat_template.jinja` in the "
                               "bundle shows which it knows")  # fmt: skip
        places = dict(self._unmentioned(messages))
        lost = self._lost(set(places.values()), messages, render)
        if lost:
            named = [place for place, key in places.items() if key in lost]
            raise self._unread("message keys", named, "leave them out, or say it in the content")

    def _unmentioned(self, messages: Messages) -> Iterator[tuple[str, str]]:
        """(place, key) of keys in messages and their parts that the source does not mention."""
        for index, message in enumerate(messages):
            known = BOOKKEEPING | ({"name"} if message["role"] == "tool" else set())
            for key in self._strange(message):
                if key not in known:
                    yield f"messages[{index}].{key}", key
            parts = message.get("content")
            for number, part in enumerate(parts if isinstance(parts, (list, tuple)) else ()):
                for key in self._strange(part) if isinstance(part, Mapping) else ():
                    yield f"messages[{index}].content[{number}].{key}", key

    def _strange(self, fields: Mapping[str, Any]) -> list[str]:
        known = self._mentioned | PLAIN
        if known & {"reasoning_content", "thinking"}:
            known = known | set(REASONING)
        return [k for k, v in fields.items() if k not in known and not _is_empty(v)]

    def _lost(
        self, keys: set[str], messages: Messages, render: Callable[[Messages], Any]
    ) -> set[str]:
        """Those of the keys without which the chat reads the same."""
        if not keys:
            return set()
        whole = render(messages)
        if render(_without(messages, keys)) == whole:
            return keys
        tried = sorted(keys)[:_TRIED] if len(keys) > 1 else []
        return {key for key in tried if render(_without(messages, {key})) == whole}

    def _unread(self, what: str, names: Sequence[str], hint: str) -> RequestError:
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return RequestError(
            f"the chat template does not read these {what}: {listed} ({self._where})",
            code="template-unread",
            hint=hint,
            field=names[0],
        )


def _is_empty(value: Any) -> bool:
    """Whether nothing is lost with a value."""
    return value is None or value is False or (hasattr(value, "__len__") and len(value) == 0)


def _without(messages: Messages, keys: set[str]) -> list[dict[str, Any]]:
    """The messages without some keys, in themselves and in their parts."""
    found = []
    for message in messages:
        kept = {key: value for key, value in message.items() if key not in keys}
        parts = kept.get("content")
        if isinstance(parts, (list, tuple)):
            kept["content"] = [_part_without(part, keys) for part in parts]
        found.append(kept)
    return found


def _part_without(part: Any, keys: set[str]) -> Any:
    if not isinstance(part, Mapping):
        return part
    return {key: value for key, value in part.items() if key not in keys}
