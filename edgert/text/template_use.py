"""What a chat template reads: whatever a caller gives that it does not is an error, not lost.

Names are looked for in the template's source. A key of a message that is not mentioned there may
still come out (`message | tojson`), so the chat is then rendered without it: only what makes no
difference is refused. `template_parts` does so with what the parts of a content say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jinja2 import meta, nodes

from ..errors import RequestError
from .segments import Segment
from .template_data import Chat
from .template_parts import Messages, Render, says_nothing, unread

REASONING = ("reasoning_content", "thinking", "reasoning")  # names in use for the same field
PLAIN = frozenset({"role", "content"})
# Numbers by which programs match calls with results; templates get these by their order.
BOOKKEEPING = frozenset({"id", "index", "tool_call_id"})
QUIET = BOOKKEEPING | {"type"}  # of a part
_TRIED = 16  # keys, one by one


class TemplateUse:
    """The names in a template's syntax tree. where: the template's file, for messages."""

    def __init__(self, tree: nodes.Template, where: str) -> None:
        self._where = where
        self._loaded = meta.find_undeclared_variables(tree)
        self._mentioned = {node.attr for node in tree.find_all(nodes.Getattr)}
        texts = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
        self._mentioned |= texts

    def check(self, chat: Chat, whole: list[Segment], render: Render) -> None:
        """Raises RequestError that names tools, variables and what is in messages that the template
        does not read. whole: the chat; render: that of other messages, with the same tools and
        variables."""
        if chat.tools and "tools" not in self._loaded:
            raise self._unread("tools", ["tools"], "a model whose template knows tools, or the "
                               "system message, can describe them")  # fmt: skip
        unknown = sorted(set(chat.variables) - self._loaded)
        if unknown:
            raise self._unread("variables", unknown, "leave them out; `chat_template.jinja` in the "
                               "bundle shows which it knows")  # fmt: skip
        places = dict(self._unmentioned(chat.messages))
        lost = _lost(set(places.values()), chat.messages, whole, render)
        if lost:
            named = [place for place, key in places.items() if key in lost]
            raise self._unread("message keys", named, "leave them out, or say it in the content")
        kinds = self._mentioned.intersection(REASONING)  # parts that later turns may go without
        pieces = unread(chat.messages, render, whole, QUIET, kinds)
        if pieces:
            raise self._unread("parts of messages", list(map(str, pieces)),
                               "leave them out, or make the content one text")  # fmt: skip

    def _unmentioned(self, messages: Messages) -> Iterator[tuple[str, str]]:
        """(place, key) of keys in messages that the source does not mention."""
        for index, message in enumerate(messages):
            known = BOOKKEEPING | ({"name"} if message["role"] == "tool" else set())
            for key in self._strange(message):
                if key not in known:
                    yield f"messages[{index}].{key}", key

    def _strange(self, fields: Mapping[str, Any]) -> list[str]:
        known = self._mentioned | PLAIN
        if known & {"reasoning_content", "thinking"}:
            known = known | set(REASONING)
        return [k for k, v in fields.items() if k not in known and not says_nothing(v)]

    def _unread(self, what: str, names: Sequence[str], hint: str) -> RequestError:
        listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        return RequestError(
            f"the chat template does not read these {what}: {listed} ({self._where})",
            code="template-unread",
            hint=hint,
            field=names[0],
        )


def _lost(keys: set[str], messages: Messages, whole: list[Segment], render: Render) -> set[str]:
    """Those of the keys without which the chat reads the same."""

    def same(left_out: set[str]) -> bool:
        try:
            return render(_without(messages, left_out)) == whole
        except RequestError:
            return False

    if not keys or same(keys):
        return keys
    return {key for key in sorted(keys)[:_TRIED] if len(keys) > 1 and same({key})}


def _without(messages: Messages, keys: set[str]) -> list[dict[str, Any]]:
    return [{k: v for k, v in message.items() if k not in keys} for message in messages]
