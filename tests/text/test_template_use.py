"""Nothing that a chat template does not read is lost without a word; stop strings can fire."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import edgert
from edgert.errors import RequestError
from edgert.text.template import ChatTemplate
from tests.tiny import tiny_bundle

USER = {"role": "user", "content": "hi"}
TOOLS = [{"type": "function", "function": {"name": "weather"}}]
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m['content'] }}\n{% endfor %}"
PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def check(source: str, *messages: dict[str, Any], **given: Any) -> None:
    template = ChatTemplate(source, where="the template")
    template.render(messages or [USER], **given)
    template.check_use(messages or [USER], **given)


@pytest.mark.parametrize(
    ("source", "messages", "given", "named"),
    [
        (PLAIN, [], {"tools": TOOLS}, "tools: tools"),
        (PLAIN, [], {"documents": [{"text": "a"}]}, "variables: documents"),
        (PLAIN, [], {"enable_thinking": False, "a": 1}, "variables: a, enable_thinking"),
        (PLAIN, [], {"m": 1}, "variables: m"),
        ("{% set x = 1 %}{{ x }}" + PLAIN, [], {"x": 2}, "variables: x"),
        (PLAIN, [{**USER, "images": ["a.png"]}], {}, "message keys: messages[0].images"),
        (PLAIN, [USER, {**USER, "b": 1, "a": 1}], {}, "messages[1].b, messages[1].a"),
        (PLAIN, [USER, {**USER, "role": "assistant", "tool_calls": TOOLS}], {}, "tool_calls"),
        (PLAIN, [{**USER, "reasoning": "so"}], {}, "messages[0].reasoning"),
        (PLAIN, [{**USER, "name": "Ann"}], {}, "messages[0].name"),
        (PARTS, [{"role": "user", "content": [{"type": "text", "text": "a"},
                                              {"type": "image", "url": "b"}]}],
         {}, "messages[0].content[1].url"),
        (PARTS, [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
         {}, "parts of messages: messages[0].content[1] ("),
        (PARTS, [{"role": "user", "content": [{"type": "refusal", "text": "no"},
                                              {"type": "text", "text": "a"}]}], {},
         "parts of messages: messages[0].content[0].text ("),
        (PARTS, [{"role": "user", "content": ["a", "b"]}], {}, "[0], messages[0].content[1] ("),
        (PARTS, [USER, {"role": "user", "content": [3]}], {}, "messages[1].content[0] ("),
        (PARTS, [{"role": "user", "content": {"type": "text", "text": "a"}}], {}, "content.text ("),
        (PARTS, [{"role": "user", "content": {"type": "image"}}], {}, "messages[0].content ("),
        (PARTS + "{{ x if image_url }}", [{"role": "user", "content": [
            {"type": "text", "text": "a", "image_url": {"url": "b"}}]}], {}, "[0].image_url ("),
        (PARTS.replace("m.content %}{% if", "m.content[:1] %}{% if"),
         [{"role": "user", "content": [{"type": "text", "text": "a"}] * 99}], {}, "and 90 more"),
        (PLAIN + "{{ messages[0] | tojson }}", [{**USER, "a": 1}, {**USER, "b": 1}], {},
         "keys: messages[1].b ("),
    ],
)  # fmt: skip
def test_what_is_not_read_is_named(
    source: str, messages: list[dict[str, Any]], given: dict[str, Any], named: str
) -> None:
    with pytest.raises(RequestError) as caught:
        check(source, *messages, **given)
    assert caught.value.code == "template-unread"
    assert named in caught.value.message
    assert "the template" in caught.value.message


@pytest.mark.parametrize(
    ("source", "messages", "given"),
    [
        (PLAIN, [], {"tools": []}),
        (PLAIN, [], {"tools": None}),
        (PLAIN + "{% if tools %}{{ tools | tojson }}{% endif %}", [], {"tools": TOOLS}),
        (PLAIN + "{{ x if x is defined }}", [], {"x": 1}),
        ("{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}" + PLAIN, [], {"x": 2}),
        (PLAIN, [{**USER, "images": [], "name": None, "refusal": "", "audio": False}], {}),
        (PLAIN, [{"role": "tool", "content": "3", "tool_call_id": "a", "name": "weather"}], {}),
        (PLAIN + "{{ messages | tojson }}", [{**USER, "images": ["a.png"]}], {}),
        (PLAIN + "{% for k in messages[0] %}{{ k }}{% endfor %}", [{**USER, "anything": 1}], {}),
        (PLAIN + "{{ messages[0].get('images') }}", [{**USER, "images": ["a.png"]}], {}),
        (PLAIN + "{{ messages[0].reasoning_content }}", [{**USER, "thinking": "so"}], {}),
        (PARTS, [{"role": "user", "content": [{"type": "text", "text": "a"}]}], {}),
        (PARTS.replace("'text'", "'text' or part.url").replace("{{ part.text", "{{ part.url"),
         [{"role": "user", "content": [{"type": "image", "url": "b"}]}], {}),
        (PLAIN, [], {"anything": None}),
        (PARTS, [{"role": "user", "content": ({"type": "text", "text": "a", "image": None},)}], {}),
        (PARTS, [{"role": "user", "content": [{"type": "text", "text": "a"}] * 3}], {}),
        (PARTS, [{"role": "user", "content": [{"type": "text", "text": " "}, " ", None, {}]}], {}),
        (PARTS.replace("part.text", "part.text | upper | tojson"),
         [{"role": "user", "content": [{"type": "text", "text": "\n"},
                                       {"type": "text", "text": "b"}]}], {}),
        (PARTS.replace("part.text", "part.text[:2]"),
         [{"role": "user", "content": [{"type": "text", "text": "abcdef"}] * 2}], {}),
        (PARTS.replace("{% endif %}{% endfor %}", "{% elif part.type == 'image' %}<i>{% else %}"
                       "{{ part }}{% endif %}{% endfor %}", 1),
         [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, 3, "b"]}], {}),
        ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}",
         [{"role": "user", "content": {"type": "refusal", "text": "no", "n": 1}}], {}),
        ("{% for part in messages[0].content %}{% if part.type == 'thinking' and loop.length > 9 %}"
         "{{ part.thinking }}{% elif part.text %}{{ part.text }}{% endif %}{% endfor %}",
         [{"role": "assistant", "content": [{"type": "thinking", "thinking": "so"},
                                            {"type": "text", "text": "a"}]}], {}),
    ],
)  # fmt: skip
def test_what_is_read_or_says_nothing_passes(
    source: str, messages: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    check(source, *messages, **given)


@dataclass
class Said:
    type: str
    text: str | None = None
    image_url: str | None = None


def test_parts_that_are_objects_are_read_or_named() -> None:
    given = [Said("text", "a"), Said("text", "b")]
    check(PARTS + "{% if messages[0].content[0].image_url is defined %}{{ x }}{% endif %}",
          {"role": "user", "content": given})  # fmt: skip
    with pytest.raises(RequestError, match=r"messages\[0\].content\[2\].image_url \("):
        check(PARTS, {"role": "user", "content": [*given, Said("image_url", image_url="x")]})


def test_parts_of_text_cost_one_more_rendering() -> None:
    template, count = ChatTemplate(PARTS), 0
    run = template._run

    def counted(variables: Any) -> str:
        nonlocal count
        count += 1
        return run(variables)

    template._run = counted  # type: ignore[method-assign]
    template.render_checked([USER] * 50, None, {})
    assert count == 1
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    template.render_checked([{"role": "user", "content": parts}] * 50, None, {})
    assert count == 3


def test_the_template_of_chats_with_tools_is_the_one_that_is_checked() -> None:
    with_tools = ChatTemplate(PLAIN + "{{ tools | tojson }}", where="that of tools")
    template = ChatTemplate(PLAIN + "{{ x }}", where="the template", with_tools=with_tools)
    template.check_use([USER], tools=TOOLS)
    template.check_use([USER], x=1)
    with pytest.raises(RequestError, match=r"variables: x \(that of tools"):
        template.check_use([USER], tools=TOOLS, x=1)


def test_every_way_to_chat_refuses(tmp_path: Path) -> None:
    with edgert.load(tiny_bundle(tmp_path / "t.edge"), device="reference") as model:
        for ask in (
            lambda: model.chat([{**USER, "images": ["a.png"]}], max_tokens=1),
            lambda: model.chat([USER], tools=TOOLS, max_tokens=1),
            lambda: model.chat([USER], template={"enable_thinking": False}, max_tokens=1),
            lambda: model.conversation(tools=TOOLS).say("hi", max_tokens=1),
            lambda: model.chat([USER], template={"self": 1}, max_tokens=1),
        ):
            with pytest.raises(RequestError, match="does not read these"):
                ask()


def test_messages_that_are_objects_of_client_libraries_chat(tmp_path: Path) -> None:
    class Role(str, Enum):
        USER = "user"

    class Level(IntEnum):
        HIGH = 3

    class Record(NamedTuple):
        role: Any
        content: Any

    @dataclass
    class Message:
        role: Any
        content: Any
        tool_calls: Any = None
        level: Any = None

    class Model:
        """As pydantic's."""

        def model_dump(self) -> dict[str, Any]:
            return {"role": Role.USER, "content": "hi", "tool_calls": None}

    class Name(str):
        def __str__(self) -> str:
            return "another"

    with edgert.load(tiny_bundle(tmp_path / "t.edge"), device="reference") as model:
        want = model.chat_ids([USER])
        for message in (
            Message("user", "hi"), Message(Role.USER, np.str_("hi")), Model(), Record("user", "hi"),
            {"role": Role.USER, "content": Name("hi")}, {Name("role"): "user", "content": "hi"},
        ):  # fmt: skip
            assert model.chat_ids([message]) == want
        assert model.chat([Model()], max_tokens=1).usage.prompt_tokens == len(want)
        for message, said in (
            (Message("user", "hi", level=Level.HIGH), "keys: messages[0].level"),
            (Message("user", b"hi"), "messages[0].content is of type bytes"),
            (Message("user", Level.HIGH), "content of type int"),
            (Message(Level.HIGH, "hi"), "expected an object with a text `role`"),
            (object(), "messages[0] is of type object, expected text"),
            ({"role": "user", "content": "hi", 1: 2, "1": 3}, "keys that differ"),
        ):
            with pytest.raises(RequestError) as caught:
                model.chat([message], max_tokens=1)
            assert said in caught.value.message
    source = "{{ messages[0].n }}{{ messages[0].m | tojson }}"
    chat = [{"role": "user", "content": "", "n": Level.HIGH, "m": {Role.USER: Role.USER}}]
    assert ChatTemplate(source).render(chat)[0].text == '3{"user": "user"}'


def test_a_stop_string_that_is_a_special_token_fires(tmp_path: Path) -> None:
    with edgert.load(tiny_bundle(tmp_path / "t.edge"), device="reference") as model:
        special = model.tokenizer.vocabulary.special
        text = next(s for s in special if model.tokenizer.id_of(s) not in
                    model.tokenizer.eos_token_ids)  # fmt: skip
        token = model.tokenizer.id_of(text)
        assert token is not None
        options: dict[str, Any] = {"logit_bias": {token: 100.0}, "max_tokens": 5}
        assert model.generate("a", **options).token_ids == (token,) * 5
        for stop in (text, f" {text}\n", [text, "x"]):
            answer = model.generate("a", stop=stop, **options)
            assert (answer.token_ids, answer.finish_reason) == ((token,), "stop")
            assert answer.text == ""
        with pytest.raises(RequestError, match="never shows, expected that token alone") as caught:
            model.stream("a", stop=f"{text}user", **options)
        assert caught.value.code == "stop-special"
