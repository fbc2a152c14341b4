"""Nothing that a chat template does not read is lost without a word; stop strings can fire."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
        (PARTS.replace("'text'", "'text' or part.url"),
         [{"role": "user", "content": [{"type": "image", "url": "b"}]}], {}),
    ],
)  # fmt: skip
def test_what_is_read_or_says_nothing_passes(
    source: str, messages: list[dict[str, Any]], given: dict[str, Any]
) -> None:
    check(source, *messages, **given)


def test_every_way_to_chat_refuses(tmp_path: Path) -> None:
    with edgert.load(tiny_bundle(tmp_path / "t.edge"), device="reference") as model:
        for ask in (
            lambda: model.chat([{**USER, "images": ["a.png"]}], max_tokens=1),
            lambda: model.chat([USER], tools=TOOLS, max_tokens=1),
            lambda: model.chat([USER], template={"enable_thinking": False}, max_tokens=1),
            lambda: model.conversation(tools=TOOLS).say("hi", max_tokens=1),
        ):
            with pytest.raises(RequestError, match="does not read these"):
                ask()


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
