"""Parameters: one list of names and types, ranges, and what resolving makes of them."""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

import click
import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.text.params import BREAKERS, Resolved, SamplingOptions, SamplingParams
from tests.conftest import ROOT

PLAIN = {Sequence: tuple, Mapping: dict}
TEXTS = ("stop", "dry_sequence_breakers")  # one text means a list of it


def parts(hint: Any) -> set[Any]:
    """Members of a union, None left out, with the container types that msgspec reads them into."""
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    found: set[Any] = set()
    for member in members:
        kind = PLAIN.get(get_origin(member), get_origin(member))
        inner = tuple(arg for arg in get_args(member) if arg is not ...)
        found.add((kind, inner) if kind else member)
    return found - {type(None)}


def test_keywords_are_the_parameters() -> None:
    options, params = get_type_hints(SamplingOptions), get_type_hints(SamplingParams)
    assert list(options) == list(params) == list(SamplingParams.__struct_fields__)
    assert set(SamplingOptions.__optional_keys__) == set(options)
    for name, hint in options.items():
        assert type(None) in get_args(hint), name
        assert parts(hint) - ({str} if name in TEXTS else set()) == parts(params[name]), name
    assert set(Resolved.__struct_fields__) == set(params)


def test_the_page_lists_every_parameter_and_flag() -> None:
    from edgert.cli.sampling import sampling_options

    command = click.command()(sampling_options(lambda: None))
    flags = {option.name: [*option.opts, *option.secondary_opts] for option in command.params}
    page = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `([\w/-]+)` \|", page, re.MULTILINE)
    assert [name for name, _ in rows] == list(SamplingParams.__struct_fields__)
    assert set(flags) == set(SamplingParams.__struct_fields__)
    for name, flag in rows:
        assert set(flag.split("/")) <= set(flags[name])


def test_sequences_and_mappings_of_any_kind() -> None:
    asked = SamplingParams.of(
        stop=["a", "b"], stop_token_ids=range(3), dry_sequence_breakers="x",
        logit_bias=types.MappingProxyType({np.int64(3): np.float32(0.5)}),
        temperature_last=np.bool_(False), logprobs=np.int32(2), xtc_threshold=None,
    )  # fmt: skip
    assert asked.stop == ("a", "b")
    assert asked.stop_token_ids == (0, 1, 2)
    assert asked.dry_sequence_breakers == ("x",)
    assert asked.logit_bias == {3: 0.5}
    assert asked.temperature_last is False
    assert asked.logprobs == 2
    assert asked.xtc_threshold == SamplingParams().xtc_threshold == 0.1
    assert SamplingParams.of(dry_sequence_breakers=[]).dry_sequence_breakers == ()
    assert SamplingParams().dry_sequence_breakers == BREAKERS


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("typical_p", 0.0, "more than 0.0 up to 1.0"),
        ("xtc_probability", 1.01, "from 0.0 to 1.0"),
        ("xtc_threshold", -0.1, "from 0.0 to 1.0"),
        ("dynatemp_range", float("nan"), "from 0.0 to 100.0"),
        ("dynatemp_exponent", -1.0, "from 0.0 to 100.0"),
        ("dry_multiplier", -0.5, "from 0.0 to 100.0"),
        ("dry_base", 0.9, "from 1.0 to 100.0"),
        ("dry_allowed_length", 0, "from 1 to"),
        ("dry_penalty_last_n", -2, "from -1 to"),
        ("dry_sequence_breakers", ["a"] * 17, "from 0 to 16"),
        ("dry_sequence_breakers", [""], "from 1 to 256"),
        ("stop", [""], "from 1 to 256"),
        ("logprobs", 21, "from 0 to 20"),
        ("logprobs", -1, "from 0 to 20"),
    ],
)
def test_ranges(field: str, value: Any, expected: str) -> None:
    with pytest.raises(RequestError, match=f"{field[:-1]}.* is .*, expected {expected}") as caught:
        SamplingParams.of(**{field: value}).checked(100)
    assert caught.value.code == "parameter-range"
    assert caught.value.values["field"] == field


@pytest.mark.parametrize("field", ["stop", "dry_sequence_breakers"])
def test_texts_are_unicode(field: str) -> None:
    with pytest.raises(RequestError, match=r"'a\\ud800', expected Unicode text") as caught:
        SamplingParams.of(**{field: "a\ud800"}).checked(100)
    assert (caught.value.code, caught.value.values["field"]) == ("text-surrogate", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature_last", 1), ("logprobs", True), ("dry_base", "2"), ("dry_allowed_length", 1.5),
     ("dry_sequence_breakers", [1])],
)  # fmt: skip
def test_types(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=field) as caught:
        SamplingParams.of(**{field: value})
    assert caught.value.code == "parameter-type"


def test_what_draws_means_temperature_one() -> None:
    for asked in ({"typical_p": 0.9}, {"xtc_probability": 0.1}, {"dynatemp_range": 0.1}):
        assert SamplingParams.of(**asked).resolved({}).temperature == 1.0
        assert SamplingParams.of(**asked).resolved({"temperature": 0.6}).temperature == 0.6
        assert SamplingParams.of(**asked, temperature=0.0).resolved({}).temperature == 0.0
    for asked in ({"dry_multiplier": 0.8}, {"xtc_threshold": 0.2}, {"logprobs": 3}):
        assert SamplingParams.of(**asked).resolved({}).greedy
