"""Texts of 512 tokens with every proposer, kind of state and number of callers are the plain ones
(10.1.1 and 10.1.3 of the specification at their full length)."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from edgert.text.model import TextModel
from edgert.text.speculative.options import DraftOptions

from .models import KINDS, NO_END, Mad, Scripted, sessions, text_model, unlike

pytestmark = pytest.mark.slow

COUNT = 512
SAMPLERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3, "seed": 1},
    {"temperature": 1.0, "seed": 2, "repeat_penalty": 1.05},
    {"temperature": 1.5, "seed": 3, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
]


@pytest.fixture(scope="module", params=KINDS)
def models(
    request: pytest.FixtureRequest, kernel_folder: Path
) -> Iterator[tuple[TextModel, TextModel]]:
    make = sessions(kernel_folder)[request.param]
    with text_model(make()) as model, text_model(make(**unlike(model.session))) as small:
        yield model, small


def prompt_of(index: int) -> str:
    return f"{index} " + "the cat and the dog and the cat " * (1 + index)


@pytest.mark.parametrize("options", SAMPLERS, ids=str)
@pytest.mark.parametrize("gamma", [1, 5, 16])
def test_10_1_every_proposer_over_512_tokens(
    models: tuple[TextModel, TextModel], gamma: int, options: dict[str, Any]
) -> None:
    model, small = models
    asked: dict[str, Any] = {"max_tokens": COUNT, **NO_END, **options}
    plain = model.generate(prompt_of(1), **asked).token_ids
    known = [*model.tokenize(prompt_of(1)), *plain]
    for proposer in (Scripted(known, gamma), Scripted(known, gamma, gamma // 2), Mad(gamma)):
        assert model.generate(prompt_of(1), proposer=proposer, **asked).token_ids == plain
    for source in ("ngram", small, ("ngram", small), model):
        for adapt in (True, False):
            draft = DraftOptions(source, max_tokens=gamma, adapt=adapt)
            assert model.generate(prompt_of(1), draft=draft, **asked).token_ids == plain


@pytest.mark.parametrize("callers", [2, 5])
def test_10_1_every_proposer_with_several_callers(
    models: tuple[TextModel, TextModel], callers: int
) -> None:
    model, small = models
    asked = [
        {"prompt": prompt_of(i), "max_tokens": COUNT, **NO_END, **SAMPLERS[i % len(SAMPLERS)]}
        for i in range(callers)
    ]
    plain = [model.generate(**ask).token_ids for ask in asked]
    for source in ("ngram", small, ("ngram", small)):
        for adapt in (True, False):
            draft = DraftOptions(source, max_tokens=5, adapt=adapt)
            with ThreadPoolExecutor(callers) as pool:
                jobs = [pool.submit(model.generate, draft=draft, **ask) for ask in asked]
                assert [job.result(300).token_ids for job in jobs] == plain


def test_rejection_over_512_tokens_is_greedy_where_the_model_is(
    models: tuple[TextModel, TextModel],
) -> None:
    model, small = models
    asked: dict[str, Any] = {"max_tokens": COUNT, **NO_END}
    plain = model.generate(prompt_of(1), **asked).token_ids
    for source in ("ngram", small, ("ngram", small)):
        draft = DraftOptions(source, verify="rejection")
        assert model.generate(prompt_of(1), draft=draft, **asked).token_ids == plain
