"""Draft heads: whatever they guess, the text is the plain one; and they guess what they should."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgert.errors import DeviceError, RequestError, ResourceError
from edgert.graph import Graph
from edgert.session.base import Feed
from edgert.session.cpu import CpuSession
from edgert.text.model import TextModel
from edgert.text.speculative.head import KEPT, HeadProposer
from edgert.text.speculative.options import DraftOptions

from ...closeness import assert_close
from ...tiny import tiny_graph, tiny_weights
from .heads import IDS, KINDS, model_with_head, random_head, with_head
from .models import NO_END, Scripted, cpu_session, text_model
from .test_invariants import PROMPT, SAMPLERS, assert_nothing_is_held

FIXED = DraftOptions("head", max_tokens=5, adapt=False)


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, kernel_folder: Path) -> Iterator[TextModel]:
    with model_with_head(request.param, kernel_folder) as model:
        model.name = request.param
        yield model
        assert_nothing_is_held(model.drafting.head().session)
        assert_nothing_is_held(model.session)


@pytest.fixture(scope="module")
def plain_kv(kernel_folder: Path) -> Iterator[TextModel]:
    with model_with_head("kv", kernel_folder) as model:
        yield model


# --- the text is the plain one -------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_10_1_3_texts_are_the_plain_ones(model: TextModel, sampler: str) -> None:
    options = {"max_tokens": 60, **NO_END, **SAMPLERS[sampler]}
    plain = model.generate(PROMPT, draft="none", **options).token_ids
    for draft in (FIXED, DraftOptions("head", max_tokens=16), ("ngram", "head")):
        got = model.generate(PROMPT, draft=draft, **options)
        assert got.token_ids == plain
    fixed = model.generate(PROMPT, draft=FIXED, **options).drafting
    assert fixed is not None
    assert fixed.proposed > 60
    if sampler == "t1":
        assert 0 < fixed.acceptance < 1, "all were right, or none: little is tested"


def test_10_1_1_several_lanes_at_once(model: TextModel) -> None:
    asked: list[dict[str, Any]] = [
        {"prompt": f"{PROMPT}{i} {PROMPT[:i]}", "max_tokens": 24 + 3 * i, "seed": i,
         "temperature": 0.5 * (i % 3), **NO_END}
        for i in range(4)
    ]  # fmt: skip
    plain = [model.generate(draft="none", **ask).token_ids for ask in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        jobs = [pool.submit(model.generate, draft=FIXED, **ask) for ask in asked]
        assert [job.result(120).token_ids for job in jobs] == plain


def test_rejection_is_greedy_where_the_model_is(model: TextModel) -> None:
    plain = model.generate(PROMPT, max_tokens=40, draft="none", **NO_END).token_ids
    draft = DraftOptions("head", max_tokens=4, verify="rejection", adapt=False)
    assert model.generate(PROMPT, max_tokens=40, draft=draft, **NO_END).token_ids == plain
    drawn = model.generate(
        PROMPT, max_tokens=40, draft=draft, temperature=1.0, seed=1, **NO_END
    ).drafting
    assert drawn is not None
    assert drawn.accepted > 0


def test_10_1_3_a_context_that_is_shifted(plain_kv: TextModel) -> None:
    options = {"max_tokens": 300, "context_shift": True, "temperature": 1.0, "seed": 3, **NO_END}
    prompt = "abcd efgh " * 95
    plain = plain_kv.generate(prompt, draft="none", **options).token_ids
    assert plain_kv.generate(prompt, draft=FIXED, **options).token_ids == plain


def test_a_conversation_and_a_shared_beginning(plain_kv: TextModel) -> None:
    """Rows of places that are known already do not come: the head begins behind them."""
    said = []
    for draft in ("none", FIXED):
        plain_kv.drafting.default = DraftOptions.of(draft, FIXED)
        with plain_kv.conversation(system="Be brief. " * 20) as chat:
            said.append([chat.say(text, max_tokens=20, **NO_END).text for text in ("a", "b", "c")])
            drafting = chat.say("d", max_tokens=20, **NO_END)
    plain_kv.drafting.default = DraftOptions("none")
    assert said[0] == said[1]
    assert drafting.drafting is not None
    assert drafting.drafting.proposed > 0
    assert drafting.usage.cached_tokens > 100, "nothing was known already"


def test_a_prompt_longer_than_the_head_remembers(plain_kv: TextModel) -> None:
    prompt = [4 + i * 7 % 250 for i in range(4 * KEPT + 9)]
    got = plain_kv.generate(prompt, max_tokens=40, draft=FIXED, **NO_END)
    assert (
        got.token_ids == plain_kv.generate(prompt, max_tokens=40, draft="none", **NO_END).token_ids
    )
    assert got.drafting is not None
    assert got.drafting.proposed > 20


def test_no_step_makes_its_graph_anew(plain_kv: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inferring the shapes of a graph with taps takes longer than a small model's step."""
    plain_kv.generate(PROMPT, max_tokens=12, draft=FIXED, **NO_END)

    def refuse(graph: Graph, names: Any) -> Graph:
        raise AssertionError(f"{graph.name} with {names}")

    monkeypatch.setattr(Graph, "with_outputs", refuse)
    drafting = plain_kv.generate(PROMPT, max_tokens=12, draft=FIXED, **NO_END).drafting
    assert drafting is not None
    assert drafting.proposed > 0


def test_a_head_that_may_guess_nothing_lets_the_model_write(plain_kv: TextModel) -> None:
    bias = {"logit_bias": {int(i): -100.0 for i in IDS}}
    plain = plain_kv.generate(PROMPT, max_tokens=12, draft="none", **bias).token_ids
    assert not set(plain) & set(IDS.tolist())
    assert plain_kv.generate(PROMPT, max_tokens=12, draft=FIXED, **bias).token_ids == plain


def test_a_head_without_memory_only_stops_guessing(
    plain_kv: TextModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = plain_kv.generate(PROMPT, max_tokens=30, draft="none", **NO_END).token_ids

    def full(count: int) -> list[int]:
        raise ResourceError("no page is free", code="kv-pages")

    monkeypatch.setattr(plain_kv.drafting.head().session.pool, "take", full)  # type: ignore[attr-defined]
    got = plain_kv.generate(PROMPT, max_tokens=30, draft=FIXED, **NO_END)
    assert got.token_ids == plain
    assert got.drafting is not None
    assert got.drafting.proposed == 0


# --- what it guesses -----------------------------------------------------------------------------


class Watching(Scripted):
    """Guesses what a head does not, and has that guess beside it."""

    def __init__(self, text: list[int], gamma: int, right: int, head: HeadProposer) -> None:
        super().__init__(text, gamma, right)
        self.head, self.taps = head, head.taps
        self.made: dict[int, list[int]] = {}

    def see(self, start: int, rows: Any) -> None:
        self.head.see(start, rows)

    def propose(self, tokens: Any, limit: int) -> Any:
        self.made[len(tokens)] = list(self.head.propose(tokens, 3).tokens)
        assert self.head.known == len(tokens) - 1, "a row for each token but the newest"
        assert self.head.state is not None
        assert self.head.state.length == self.head.known
        return super().propose(tokens, limit)


@pytest.mark.parametrize("right", [0, 2, -1])
def test_10_1_6_guesses_are_those_of_a_fresh_head(
    plain_kv: TextModel, right: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After none, some and all of a draft stood: the head knows the text and nothing else."""
    monkeypatch.setattr("edgert.text.speculative.head.KEPT", 2 * KEPT)  # the prompt is longer
    prompt = plain_kv.tokenize(PROMPT)
    plain = plain_kv.generate(prompt, max_tokens=30, draft="none", **NO_END).token_ids
    text, maker = [*prompt, *plain], plain_kv.drafting.head()
    params = plain_kv.checked_params(dict(NO_END)).resolved({})
    head = maker.proposer(params, verify="coupled", controller=None)
    watching = Watching(text, 4, right, head)
    got = plain_kv.generate(prompt, max_tokens=30, proposer=watching, **NO_END)
    assert got.token_ids == plain
    state = plain_kv.session.new_state()
    feed = Feed(state, np.asarray(text, np.int32), "none", taps=head.taps)
    (result,) = plain_kv.session.step([feed])
    state.close()
    assert len(watching.made) > 4
    for count, guesses in watching.made.items():
        fresh = maker.proposer(params, verify="coupled", controller=None)
        fresh.see(0, {name: rows[: count - 1] for name, rows in result.taps.items()})
        assert list(fresh.propose(text[:count], 3).tokens) == guesses
        fresh.close()
    head.close()


def test_guesses_are_what_torch_computes(kernel_folder: Path) -> None:
    """The graph, fed the text and then guess by guess, is the module that is trained."""
    torch = pytest.importorskip("torch")
    from edgert.converters.draft.head import Head
    from edgert.converters.draft.shape import shape_for

    graph = tiny_graph(quant="f32", context=256, layers=3)
    weights = tiny_weights(graph)
    made, held = random_head(graph, weights, encoding="f32")
    session = CpuSession(made, held, threads=1, cache=kernel_folder)
    rng, width = np.random.default_rng(0), 64
    taps = 3
    features = rng.standard_normal((20, taps * width)).astype(np.float32)
    rows = rng.standard_normal((23, width)).astype(np.float32)
    state, zeros = session.new_state(), np.zeros((20, width), np.float32)
    given = {"features": features, "hidden": zeros, "embedding": rows[:20]}
    (first,) = session.step([Feed(state, None, "all", inputs=given, taps=("next",))])
    state.commit(20)
    head = Head(shape_for(graph, len(IDS)), {n: torch.from_numpy(w) for n, w in held.items()})
    on = [torch.from_numpy(x)[None] for x in (features, rows)]
    memory = head.first(on[0], on[1][:, :20])
    assert_close("logits", head.logits(memory.a)[0].numpy(), first.logits, rms=1e-5)
    last = head.first(on[0], on[1][:, :20], torch.tensor([[19]]))
    a = first.taps["next"][-1:]
    for place in range(2):
        given = {"features": 0 * features[:1], "hidden": a, "embedding": rows[20 + place][None]}
        (found,) = session.step([Feed(state, None, "last", inputs=given, taps=("next",))])
        state.commit(1)
        head.further(last, on[1][:, 20 + place : 21 + place])
        a = found.taps["next"]
        assert_close("next", last.a[0].numpy(), a, rms=1e-5)
    session.close()


# --- where it is not -----------------------------------------------------------------------------


def test_a_model_without_a_head_says_so(kernel_folder: Path) -> None:
    with text_model(cpu_session(kernel_folder)) as model:
        with pytest.raises(RequestError, match="has no draft head") as caught:
            model.generate("a", draft="head")
    assert caught.value.code == "draft-head"


@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="needs onnxruntime")
def test_10_1_1_on_onnxruntime(tmp_path: Path) -> None:
    """Both the model, emitted with its taps, and the head on onnxruntime."""
    from ...onnx_model import ort_session

    graph = tiny_graph(quant="f32", context=256, layers=3)
    weights = tiny_weights(graph)
    made, held = random_head(graph, weights, encoding="f32")
    folders = [tmp_path / name for name in ("text", "head", "plain")]
    for folder in folders:
        folder.mkdir()
    head = ort_session(made, held, folders[1])
    taps = ("x1", "x2", "x0")
    session = ort_session(graph, weights, folders[0], taps=taps)
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 4, **NO_END}
    with with_head(session, weights, tmp_path, head) as model:
        plain = model.generate(PROMPT, draft="none", **options).token_ids
        got = model.generate(PROMPT, draft=FIXED, **options)
    assert got.drafting is not None
    assert got.drafting.proposed > 40
    same = sum(a == b for a, b in zip(plain, got.token_ids, strict=True))
    assert same > 20, "near ties may fall to the other side, but not at once"
    with with_head(ort_session(graph, weights, folders[2]), weights, tmp_path) as model:
        with pytest.raises(DeviceError, match="gives no rows of"):
            model.generate(PROMPT, draft=FIXED, **options)
