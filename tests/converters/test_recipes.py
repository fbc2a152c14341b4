"""Recipes: what options mean, which of them contradict each other, and that a plan is repeated by
the command that it tells."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.calibrate import SAMPLE_NAME, Calibration
from edgert.converters.recipes import (
    RATIO,
    RECIPES,
    Asked,
    candidates,
    default_method,
    is_auto,
    resolve,
)

from edgert.cli.convert import PRESETS, command
from edgert.cli.convert import RECIPES as OFFERED
from edgert.errors import ConvertError

TEXT = Calibration("some text", 4, 64)


def test_the_command_offers_every_recipe() -> None:
    assert OFFERED == RECIPES


@pytest.mark.parametrize(
    ("asked", "quant", "embed", "method"),
    [
        (Asked(), "int4-g32", "int8-g32", "gptq"),
        (Asked("int3"), "uint3-g64", "int8-g32", "gptq"),
        (Asked("int4"), "int4-g32", "int8-g32", "gptq"),
        (Asked(quant="int6"), "int6-g64", "int8-g32", "gptq"),
        (Asked(quant="int8"), "int8-g32", "int8-g32", "rtn"),
        (Asked(quant="f16"), "f16", "f16", "rtn"),
        (Asked(quant="f32", embed_quant="f16"), "f32", "f16", "rtn"),
        (Asked("int3", quant="int5"), "int5-g64", "int8-g32", "gptq"),
        (Asked(method="rtn"), "int4-g32", "int8-g32", "rtn"),
        (Asked("compot-int8"), "int8-g32", "int8-g32", "rtn"),
        (Asked("compot-int4"), "int4-g32", "int8-g32", "gptq"),
        (Asked("int3", compot=0.3), "uint3-g64", "int8-g32", "gptq"),
        (Asked("mixed", budget_mb=9), "int4-g32", "int8-g32", "gptq"),
    ],
)
def test_what_options_mean(asked: Asked, quant: str, embed: str, method: str) -> None:
    plan = resolve(asked)
    assert (plan.quant, plan.embed_quant, plan.method) == (quant, embed, method)
    needs = method == "gptq" or plan.mixed or plan.factoring is not None
    assert (plan.calibration is not None) == needs


def test_the_ratio_is_given_found_or_the_usual_one() -> None:
    found = [
        resolve(asked).factoring
        for asked in (
            Asked("compot-int8"),
            Asked("compot-int8", compot=0.35),
            Asked("compot-int8", budget_mb=9),
        )
    ]
    assert [each.ratio for each in found if each] == [RATIO, 0.35, 0.0]
    four = resolve(Asked("compot-int4")).factoring
    assert four is not None
    assert (four.a, four.bits) == ("int4-g32", 6)


def test_a_text_is_taken_and_the_sample_is_the_usual_one() -> None:
    assert resolve(Asked(calibration=TEXT)).calibration is TEXT
    made = resolve(Asked()).calibration
    assert made is not None
    assert (made.name, made.sequences) == (SAMPLE_NAME, PRESETS["quick"])
    healed = resolve(Asked(quant="f16", heal=1000, calibration=TEXT))
    assert (healed.calibration, healed.heal, healed.method) == (TEXT, 1000, "rtn")


# Contradictions

NAN = float("nan")
REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "recipe": ({"recipe": "int5"}, "recipe", "'int5', expected one of"),
    "quant": ({"quant": "int7"}, "quant", "'int7' is unknown"),
    "embedding": ({"embed_quant": "int9"}, "quant", "'int9' is unknown"),
    "method": ({"method": "awq"}, "method", "'awq', expected one of"),
    "ratio 0": ({"compot": 0.0}, "compot-ratio", "--compot 0, expected a ratio"),
    "ratio 1": ({"compot": 1.0}, "compot-ratio", "--compot 1, expected a ratio"),
    "ratio nan": ({"compot": NAN}, "compot-ratio", "--compot nan"),
    "ratio and budget": ({"compot": 0.2, "budget_mb": 9}, "budget", "--compot 0.2 and --budget-mb"),
    "budget 0": ({"recipe": "mixed", "budget_mb": 0}, "budget", "--budget-mb 0, expected"),
    "budget nan": ({"recipe": "mixed", "budget_mb": NAN}, "budget", "--budget-mb nan, expected"),
    "budget inf": ({"recipe": "mixed", "budget_mb": float("inf")}, "budget", "--budget-mb"),
    "idle budget": ({"quant": "int4", "budget_mb": 9}, "budget", "nothing that it could change"),
    "mixed alone": ({"recipe": "mixed"}, "budget", "without a number of bytes"),
    "mixed by quant": ({"quant": "mixed"}, "budget", "without a number of bytes"),
    "mixed and ratio": ({"quant": "mixed", "compot": 0.2}, "recipe", "and --compot 0.2"),
    "mixed and COMPOT": (
        {"recipe": "compot-int4", "quant": "mixed", "budget_mb": 9},
        "recipe",
        "and --recipe compot-int4",
    ),
    "mixed and quant": (
        {"recipe": "mixed", "quant": "int8", "budget_mb": 9},
        "recipe",
        "and --quant int8",
    ),
    "mixed and embedding": (
        {"recipe": "mixed", "embed_quant": "f16", "budget_mb": 9},
        "recipe",
        "and --embed-quant f16",
    ),
    "COMPOT in f32": ({"recipe": "compot-int4", "quant": "f32"}, "compot-quant", "factors in f32"),
    "text for rounding": ({"method": "rtn", "calibration": TEXT}, "calibration", "reads none"),
    "text for f16": ({"quant": "f16", "calibration": TEXT}, "calibration", "method rtn"),
    "healing": ({"heal": -1}, "heal", "--heal -1"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_contradiction_is_an_error_with_its_code(name: str) -> None:
    options, code, said = REFUSED[name]
    with pytest.raises(ConvertError) as info:
        resolve(Asked(**options))
    assert info.value.code == code
    assert said in info.value.message


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"recipe": "auto", "compot": 0.2}, "recipe"),
        ({"recipe": "auto", "quant": "mixed"}, "recipe"),
        ({"recipe": "auto", "quant": "int4", "budget_mb": 9}, "recipe"),
        ({"recipe": "auto", "budget_mb": NAN}, "budget"),
        ({"budget_mb": float("inf")}, "budget"),
        ({"budget_mb": -1}, "budget"),
    ],
)
def test_auto_refuses_what_leaves_it_nothing_to_try(options: dict[str, Any], code: str) -> None:
    with pytest.raises(ConvertError) as info:
        is_auto(Asked(**options))
    assert info.value.code == code


def test_auto_is_asked_for_by_name_or_by_a_budget_alone() -> None:
    assert is_auto(Asked("auto"))
    assert is_auto(Asked("auto", quant="int4"))
    assert is_auto(Asked(budget_mb=9, method="rtn", embed_quant="f16"))
    assert not is_auto(Asked())
    assert not is_auto(Asked("mixed", budget_mb=9))
    assert not is_auto(Asked(compot=0.2))


@pytest.mark.parametrize(
    ("method", "heal", "embed"),
    [(None, 0, None), ("rtn", 0, "f16"), ("gptq", 0, None), ("hqq", 500, None)],
)
def test_every_candidate_of_auto_has_a_plan_with_the_text_that_was_given(
    method: str | None, heal: int, embed: str | None
) -> None:
    asked = Asked("auto", None, embed, method, None, 9, heal, TEXT)
    plans = [resolve(want) for want in candidates(asked)]
    assert all(plan.calibration in (None, TEXT) for plan in plans)
    assert [plan.mixed for plan in plans].count(True) == (embed is None)
    assert all(embed in (None, plan.embed_quant) for plan in plans)
    assert len({plan.title for plan in plans}) == len(plans)


# A plan's own command


def parsed(options: list[str]) -> Asked:
    """What the command line makes of options."""
    context = command.make_context("convert", ["source", "-o", "m.edge", *options])
    given = context.params
    path, sequences = given["calibration"], given["sequences"]
    text = None
    if path is not None:
        text = Calibration.read(path, sequences)
    elif sequences != PRESETS["quick"]:
        text = Calibration.sample(sequences)
    names = ("recipe", "quant", "embed_quant", "method", "compot", "budget_mb", "heal")
    return Asked(**{name: given[name] for name in names}, calibration=text)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("some text", encoding="utf-8")
    return path


ASKED = [
    *(Asked(quant=quant) for quant in ("f32", "f16", "int8", "int4", "int3", "int2")),
    *(Asked(method=method) for method in ("rtn", "hqq", "gptq")),
    *(
        Asked(recipe, budget_mb=budget, heal=heal)
        for recipe, budget, heal in itertools.product(
            ("mixed", "compot-int8", "compot-int4"), (20, 12.345678, 0.1), (0, 20_000)
        )
    ),
    *(Asked("compot-int4", quant=quant, budget_mb=7) for quant in ("f16", "int5", "int2")),
    *(Asked("compot-int8", compot=ratio) for ratio in (0.2, 0.123456789)),
    Asked(compot=0.4, quant="int3", embed_quant="f16", method="hqq"),
    Asked("mixed", method="rtn", budget_mb=33.000001),
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_the_options_of_a_plan_repeat_it(asked: Asked, text: Path) -> None:
    plan = resolve(asked)
    assert resolve(parsed(plan.options())) == plan
    if plan.calibration is not None:
        given = replace(asked, calibration=Calibration.read(text, 37))
        plan = resolve(given)
        options = [str(text) if word == "TEXT" else word for word in plan.options()]
        assert str(text) in options
        assert resolve(parsed(options)) == plan


def test_a_number_of_sequences_of_the_sample_is_repeated() -> None:
    plan = resolve(Asked(calibration=Calibration.sample(99)))
    assert resolve(parsed(plan.options())) == plan


def test_gptq_is_for_few_bits() -> None:
    assert [default_method(name) for name in ("int8-g32", "int6-g64", "uint2-g64", "f32")] == [
        "rtn", "gptq", "gptq", "rtn"
    ]  # fmt: skip
