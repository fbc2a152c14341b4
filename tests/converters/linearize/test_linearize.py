"""Linearizing a tiny model: stages, hybrids, what is kept, what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgert.converters.heal.ranks import Ranks  # noqa: E402
from edgert.converters.linearize import (  # noqa: E402  # noqa: E402
    Linearized,
    LinearizeOptions,
    Text,
    gate,
    linearize,
    memory,
    plan,
    statistics,
    window,
)
from edgert.converters.linearize.options import Verdict  # noqa: E402
from edgert.converters.linearize.passkeys import passkey_prompts  # noqa: E402
from edgert.converters.linearize.training import Rows  # noqa: E402

from edgert.errors import ConvertError  # noqa: E402
from tests.converters.linearize.models import LENGTH, Teacher, trained  # noqa: E402
from tests.tiny import tiny_graph  # noqa: E402

ASKED = LinearizeOptions(
    "all", 60_000, chunk=16, batch=1024, micro_batch=512, lengths=(64, 64, 64), rate=1e-3,
    device="cpu",
)  # fmt: skip


def asked(**changes: object) -> LinearizeOptions:
    fields = {name: getattr(ASKED, name) for name in ASKED.__dataclass_fields__}
    return LinearizeOptions(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def teacher() -> Teacher:
    torch.set_num_threads(1)
    return trained()


@pytest.fixture(scope="session")
def turned(teacher: Teacher, tmp_path_factory: pytest.TempPathFactory) -> tuple[Linearized, Path]:
    folder = tmp_path_factory.mktemp("linearize")
    text = Text(teacher.train, teacher.held)
    return linearize(teacher.graph, teacher.weights, text, ASKED, folder=folder), folder


def test_the_teacher_looks_things_up(teacher: Teacher) -> None:
    # keys are drawn freely (ln PAIRS), values follow from what stands before
    assert teacher.nats < 0.75 * math.log(32)


def test_all_layers_are_aligned_and_distilled(turned: tuple[Linearized, Path]) -> None:
    made, _ = turned
    kinds = [node.op for node in made.graph.nodes if node.state]
    assert kinds.count("linear_attention") == kinds.count("causal_conv") == 2
    assert "attention" not in kinds
    assert max(made.aligned.values()) < 0.5
    assert made.verdict.kl < 0.3
    assert 0 < made.verdict.linear_share < 1


def test_the_result_is_the_graph_that_a_converted_checkpoint_has(
    teacher: Teacher, turned: tuple[Linearized, Path]
) -> None:
    made, _ = turned
    assert set(made.weights) == set(made.graph.weights)
    assert all(np.isfinite(w).all() for w in made.weights.values())
    made.graph.shapes()
    names = plan.new_weights(made.graph, teacher.graph)
    assert {"layers.0.conv", "layers.0.gates", "layers.0.q_map", "layers.0.beta"} <= set(names)


def test_a_finished_run_is_taken_over(teacher: Teacher, turned: tuple[Linearized, Path]) -> None:
    made, folder = turned
    text = Text(teacher.train, teacher.held)
    again = linearize(teacher.graph, teacher.weights, text, ASKED, folder=folder)
    assert again.steps == made.steps
    for name, weight in made.weights.items():
        np.testing.assert_array_equal(again.weights[name], weight)


def test_a_stopped_run_goes_on_to_the_same_weights(
    teacher: Teacher, turned: tuple[Linearized, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from edgert.converters.linearize import training

    class Stopped(Exception):
        pass

    seen = {"steps": 0}
    step = training.Trainer._step

    def stopping(self, *given):  # type: ignore[no-untyped-def]
        if seen["steps"] == 5:
            raise Stopped
        seen["steps"] += 1
        return step(self, *given)

    text = Text(teacher.train, teacher.held)
    few = asked(tokens=20_000)
    whole = linearize(teacher.graph, teacher.weights, text, few)
    monkeypatch.setattr(training, "EVERY", 0.0)
    monkeypatch.setattr(training.Trainer, "_step", stopping)
    with pytest.raises(Stopped):
        linearize(teacher.graph, teacher.weights, text, few, folder=tmp_path)
    monkeypatch.setattr(training.Trainer, "_step", step)
    rest = linearize(teacher.graph, teacher.weights, text, few, folder=tmp_path)
    for name, weight in whole.weights.items():
        np.testing.assert_allclose(rest.weights[name], weight, atol=1e-6, err_msg=name)


def test_a_number_of_layers_keeps_those_that_matter_most(teacher: Teacher, tmp_path: Path) -> None:
    text = Text(teacher.train, teacher.held)
    made = linearize(
        teacher.graph, teacher.weights, text, asked(layers=1, tokens=20_000), folder=tmp_path
    )
    assert len(made.turned) == 1
    assert made.order[0] not in made.turned
    assert list(made.tried) == [1]


def test_a_window_is_nearer_to_the_teacher(teacher: Teacher) -> None:
    text, found = Text(teacher.train, teacher.held), []
    for near in (True, False):
        made = linearize(teacher.graph, teacher.weights, text, asked(tokens=10_000, window=near))
        attrs = [n.attrs for n in made.graph.nodes if n.op == "linear_attention"]
        assert [attr.get("window", False) for attr in attrs] == [near] * 2
        found.append(made)
    assert sum(found[0].aligned.values()) < 0.9 * sum(found[1].aligned.values())
    assert found[0].verdict.kl < found[1].verdict.kl
    assert found[0].verdict.agreement > found[1].verdict.agreement
    assert 0.15 < found[0].verdict.linear_share < 1  # the state is not ignored
    assert np.isfinite(found[0].weights["layers.0.log_window"]).all()


def test_documents_of_a_sequence_are_trained_apart(
    teacher: Teacher, turned: tuple[Linearized, Path]
) -> None:
    """What stands behind an end is scored as if nothing stood before it, by both models."""
    end = int(teacher.held[LENGTH // 2])
    text = Text(teacher.train, teacher.held, end=end)
    made = linearize(teacher.graph, teacher.weights, text, asked(tokens=3000, window=True))
    # pairs are looked up in what stands before, of which there is less
    assert made.verdict.teacher_nats > turned[0].verdict.teacher_nats + 0.02
    assert math.isfinite(made.verdict.kl)


def test_windows_weigh_at_first_what_they_weigh_in_the_teacher() -> None:
    rng = torch.Generator().manual_seed(1)
    ratios = 3 * torch.randn(4, 500, generator=rng) + torch.tensor([0.0, 2, -5, 9])[:, None]
    shares = torch.tensor([0.2, 0.5, 0.9, 0.99])
    found = window.solved(ratios, shares)
    assert ((ratios + found[:, None]).sigmoid().mean(1) - shares).abs().max() < 1e-3
    assert window.solved(torch.zeros(3, 0), torch.zeros(3)).tolist() == [0, 0, 0]


def test_fewer_windows_are_left_out_as_training_goes_on() -> None:
    def kept(progress: float, step: int) -> list[bool]:
        left = window.Left((0.0, 1.0), 7, Ranks(), "cpu")
        left.at(progress, step)
        found: list[bool] = left.kept(2000).tolist()
        return found

    assert abs(np.mean(kept(0.0, 3)) - 0.5) < 0.05
    assert abs(np.mean(kept(0.5, 3)) - 0.7) < 0.05
    assert abs(np.mean(kept(1.0, 3)) - 0.9) < 0.05
    assert kept(0.4, 3) == kept(0.4, 3)
    assert kept(0.4, 3) != kept(0.4, 4)


def test_large_heads_have_a_window_unless_told_otherwise() -> None:
    graph = tiny_graph(quant="f32", layers=1, head_dim=64)
    wide = asked(chunk=64)
    assert plan.turnable(graph, wide)[0].window
    assert not plan.turnable(graph, asked(window=False))[0].window
    assert not plan.turnable(tiny_graph(quant="f32", layers=1), wide)[0].window


def test_auto_says_what_each_hybrid_lacks(teacher: Teacher) -> None:
    text = Text(teacher.train, teacher.held)
    with pytest.raises(ConvertError) as info:
        linearize(teacher.graph, teacher.weights, text, asked(layers="auto", tokens=4000))
    assert info.value.code == "linearize-gate"
    assert "0 kept" in info.value.message
    assert "1 kept" in info.value.message


@pytest.mark.slow
def test_square_aligns_worse_than_shifted(
    teacher: Teacher, turned: tuple[Linearized, Path]
) -> None:
    text = Text(teacher.train, teacher.held)
    square = linearize(teacher.graph, teacher.weights, text, asked(mode="square"))
    assert sum(square.aligned.values()) > sum(turned[0].aligned.values())


def test_maps_of_full_rank_keep_logits() -> None:
    rng = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 500, 8, dtype=torch.float64, generator=rng) for _ in range(2))
    moment = [x.transpose(1, 2) @ x / 500 for x in (q, k)]
    ahead, behind = statistics.feature_maps(*moment, 8)
    exact = q @ k.transpose(1, 2)
    torch.testing.assert_close(
        (q @ ahead) @ (k @ behind).transpose(1, 2), exact, atol=1e-2, rtol=1e-2
    )
    missed = []
    for rank in (2, 4, 6):
        ahead, behind = statistics.feature_maps(*moment, rank)
        missed.append(float(((q @ ahead) @ (k @ behind).transpose(1, 2) - exact).square().mean()))
    assert missed == sorted(missed, reverse=True)
    assert missed[0] > missed[-1] > 0


def test_memory_is_that_of_the_published_table() -> None:
    told = memory.Memory(1, 1, 1, 64, 64, "square")
    assert [told.crossover(kind) for kind in ("f16", "int8", "int4")] == [2113, 3756, 6760]
    assert told.state - 4 * 3 * 64 == 2080 * 65 * 4
    assert memory.Memory(1, 1, 1, 32, 32, "square").crossover("f16") == 545


def test_states_larger_than_keys_and_values_are_refused() -> None:
    told = memory.Memory(18, 8, 4, 64, 64, "shifted")
    with pytest.raises(ConvertError) as info:
        told.check(2048, anyway=False)
    assert info.value.code == "linearize-memory"
    assert "in int8 take 20.2 MiB" in info.value.message
    assert "keep softmax" in told.check(2048, anyway=True)
    assert "keep softmax" in told.check(3000, anyway=False)
    assert told.check(8192, anyway=False) == ""


def test_the_gate_says_what_fails() -> None:
    good = Verdict(0.04, 3.1, 3.0, 0.96, 0.3, {0.5: (0.9, 1.0)})
    assert gate.verdict(good).passed
    for changes, said in (
        ((0.06, 3.1, 3.0, 0.96, 0.3, {}), "KL 0.0600"),
        ((0.04, 3.1, 3.0, 0.94, 0.3, {}), "94.0% of greedy"),
        ((0.04, 3.1, 3.0, 0.96, 0.1, {}), "0.100 of the weights"),
        ((0.04, 3.1, 3.0, 0.96, 0.3, {1.0: (0.5, 0.9)}), "50% of pass keys at 1"),
        ((math.nan, math.nan, 3.0, 0.96, 0.3, {}), "KL nan"),
    ):
        assert said in gate.verdict(Verdict(*changes)).failed[0]
    assert gate.kept_counts(18) == [0, 3, 5, 6]
    assert gate.kept_counts(1) == [0]


def test_layers_are_ranked_by_what_they_gain() -> None:
    order, gains = gate.ranking(1.0, {0: 0.9, 1: 0.4, 2: 1.1}.__getitem__, (0, 1, 2))
    assert order == (1, 0, 2)
    assert gains[1] == pytest.approx(0.6)


def test_layers_with_windows_stay() -> None:
    graph = tiny_graph(quant="f32", layers=2, window=8)
    assert [turn.layer for turn in plan.turnable(graph, ASKED)] == [0]
    assert plan.hybrid_graph(graph, [], ASKED) is graph
    turned = plan.hybrid_graph(graph, [0], ASKED)
    assert [n.op for n in turned.nodes if n.state] == [
        "causal_conv", "linear_attention", "attention",
    ]  # fmt: skip


def test_rows_come_once_before_any_comes_again() -> None:
    ids = np.arange(40, dtype=np.int32)
    rows = Rows(ids, 4, seed=1)
    first = np.concatenate([rows.batch(0, 5), rows.batch(5, 5)])
    assert sorted(first.reshape(-1).tolist()) == ids.tolist()
    np.testing.assert_array_equal(Rows(ids, 4, seed=1).batch(3, 9), rows.batch(3, 9))


def test_passkeys_are_stated_once_and_asked_for() -> None:
    held = np.full(600, 120, np.int32)
    made = passkey_prompts(held, lambda text: list(text.encode()), 300)
    assert set(made) == {0.5, 1.0}
    for share, asked_for in made.items():
        for prompt, answer in asked_for:
            assert len(prompt) + len(answer) == round(share * 300)
            text = bytes(prompt.tolist()).decode()
            assert text.count(bytes(answer.tolist()).decode()) == 2
            assert text.endswith("The pass key is")


@pytest.mark.parametrize(
    "changes",
    [{"layers": "some"}, {"layers": 0}, {"layers": True}, {"tokens": 0}, {"mode": "relu"},
     {"chunk": 8}, {"features": 0}, {"rate": 1.5}, {"serve": -1}, {"next_token": -0.1}],
)  # fmt: skip
def test_wrong_options_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConvertError) as info:
        asked(**changes)
    assert info.value.code == "linearize-options"
    assert next(iter(changes)) in info.value.message


def test_more_layers_than_there_are_and_strange_tokens_are_refused(teacher: Teacher) -> None:
    text = Text(teacher.train, teacher.held)
    with pytest.raises(ConvertError, match="9 layers to linearize, expected at most 2"):
        linearize(teacher.graph, teacher.weights, text, asked(layers=9, tokens=2000))
    strange = Text(teacher.train, np.full(100, 9999, np.int32))
    with pytest.raises(ConvertError, match="token 9999"):
        linearize(teacher.graph, teacher.weights, strange, ASKED)
    with pytest.raises(ConvertError, match="20 tokens to train on"):
        linearize(teacher.graph, teacher.weights, Text(teacher.train[:20], teacher.held), ASKED)
