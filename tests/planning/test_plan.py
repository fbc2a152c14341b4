"""Plans: oracles of memory and time, monotonicity, and the end-to-end choices."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from edgert.devices.load import load
from edgert.devices.profile import Figure, Profile, Roofline

from edgert.errors import RequestError
from edgert.forecast.latency import prompt_seconds, step_seconds
from edgert.forecast.memory import BASE, TOKENIZER
from edgert.forecast.rates import rates_of, scaled
from edgert.planning import page
from edgert.planning.candidates import (
    Candidate,
    candidates,
    costs_of,
    matrix_bytes,
    memory_of,
    ranks,
    works_of,
)
from edgert.planning.cards import SMOLLM2, Card, Workload, card_of, read_cards, workload_of
from edgert.planning.decide import Plan, prescribe
from edgert.planning.quality import Draws, Laws, scores_of
from edgert.scaling.frontier import PRIOR

from ..cli.conftest import Edgert, edgert  # noqa: F401
from ..devices.test_profiles import measured
from ..tiny import tiny_bundle, tiny_graph

SMALL: dict[str, object] = {"groups": (128,), "ratios": (0.0,), "kv_bits": (16,)}


def device(bandwidth: float, flops: float, launch: float, *, spread: float = 0.15,
           memory: float = 16e9) -> Profile:  # fmt: skip
    """A machine of the spec's oracles: eta 0.7 and 0.4."""
    base, replace = load("laptop-avx2"), msgspec.structs.replace
    figure = lambda value: Figure(value, "class", "estimate")
    found = replace(
        base,
        cpu=replace(base.cpu, flops=figure(flops), int8_ops=figure(flops)),
        memory=replace(base.memory, bandwidth=figure(bandwidth), total=figure(memory),
                       usable=figure(memory)),
        roofline=Roofline(figure(0.7), figure(0.4), figure(launch)),
    )  # fmt: skip
    if spread == 0.35:
        return found
    rates = rates_of(found)
    probe = replace(measured(8), spread=spread, rates=(rates,))
    return replace(found, measured=probe)


LAPTOP = device(60e9, 0.6e12, 5e-6)
# bandwidth, compute, launch; decode ms at 4 and 8 bits, prefill ms, for the three sizes
ORACLES = [
    (60e9, 0.6e12, 5e-6, (4.5, 8.4, 32.9), (5.7, 12.2, 52.0), (454, 1344, 6873)),
    (68e9, 10e12, 8e-6, (4.9, 8.5, 29.8), (6.0, 11.8, 46.7), (29, 83, 414)),
    (204.8e9, 80e12, 8e-6, (3.1, 4.4, 11.0), None, (6, 12, 53)),
]


@pytest.mark.parametrize(("bandwidth", "flops", "launch", "four", "eight", "prompt"), ORACLES)
def test_times_of_the_three_sizes(
    bandwidth: float, flops: float, launch: float, four: tuple[float, ...],
    eight: tuple[float, ...] | None, prompt: tuple[float, ...],
) -> None:  # fmt: skip
    rates = rates_of(device(bandwidth, flops, launch))
    for index, card in enumerate(SMOLLM2):
        for bits, wanted in ((4, four), (8, eight)):
            if wanted is None:
                continue
            found = works_of(card, Candidate(card.name, bits, 128, 0.0, 16))
            ms = step_seconds(found, rates, depth=2047) * 1e3
            assert ms == pytest.approx(wanted[index], abs=0.06 + 0.01 * wanted[index])
        found = works_of(card, Candidate(card.name, 4, 128, 0.0, 16))
        products = [w for w in found if not w.look_ops and w.rows == "T"]
        ms = prompt_seconds(products, rates, 512, chunk=512) * 1e3
        assert ms == pytest.approx(prompt[index], abs=0.6)


@pytest.mark.parametrize(
    ("m", "n", "wanted"),
    [(2048, 2048, (1048, 917, 786)), (2048, 8192, (2016, 1764, 1512)), (576, 576, (294, 258, 221))],
)
def test_ranks_of_a_ratio(m: int, n: int, wanted: tuple[int, ...]) -> None:
    assert tuple(ranks(m, n, ratio)[0] for ratio in (0.2, 0.3, 0.4)) == wanted
    for ratio in (0.2, 0.3, 0.4):
        share = 1 - matrix_bytes(m, n, 16, 128, ratio) / (2 * m * n)
        assert share == pytest.approx(ratio, abs=5e-3)
    assert ranks(4, 4096, 0.0)[0] <= 4


def test_memory_is_the_sum_of_its_parts() -> None:
    card = SMOLLM2[0]
    one, load_ = Candidate(card.name, 4, 128, 0.0, 16), Workload()
    total, stored = memory_of(card, one, load_)
    assert card.linear == 30 * (960 * 576 + 576 * 576 + 3 * 576 * 1536)
    assert stored == pytest.approx(card.linear * 4.125 / 8 + card.embedding * 8.125 / 8)
    kv = 2 * 30 * 2048 * 3 * 64 * 2
    rest = BASE + TOKENIZER * 30 * card.vocabulary
    assert total == pytest.approx(stored + kv + 256 * (2 * 576 + 2 * 1536) * 4 + rest)


def plan(profile: Profile = LAPTOP, **more: object) -> Plan:
    load_ = Workload(tok_budget_s=more.pop("tok", 0.04), context=2048)  # type: ignore[arg-type]
    return prescribe(profile, load_, more.pop("cards", SMOLLM2), **{**SMALL, **more})  # type: ignore[arg-type]


# --- end to end -----------------------------------------------------------------------------------


def test_three_bits_are_not_chosen_without_healing() -> None:
    found = plan(groups=(32, 64, 128), allow_risky=True)
    assert found.choice is not None
    assert found.choice.candidate.bits >= 4


def test_a_tighter_budget_moves_to_smaller_models() -> None:
    chosen = [plan(tok=ms / 1e3).choice for ms in (60, 15, 6)]
    assert [c.candidate.model if c else "" for c in chosen] == [
        "smollm2-1.7b", "smollm2-360m", "smollm2-135m",
    ]  # fmt: skip


@pytest.mark.parametrize("ms", [60, 40, 15, 6])
def test_healing_never_asks_for_more_bits(ms: int) -> None:
    healed = tuple(msgspec.structs.replace(card, healed=True) for card in SMOLLM2)
    raw, better = plan(tok=ms / 1e3).choice, plan(tok=ms / 1e3, cards=healed).choice
    assert raw is not None
    assert better is not None
    if raw.candidate.model == better.candidate.model:
        assert better.candidate.bits <= raw.candidate.bits
    assert better.value >= raw.value - 0.002


def test_doubled_bandwidth_bears_out_the_price() -> None:
    now, doubled = plan(tok=0.03), plan(scaled(LAPTOP, bandwidth=2.0), tok=0.03)
    assert now.choice is not None
    assert doubled.choice is not None
    assert now.binding == "time a token"
    gain = doubled.choice.value - now.choice.value
    assert gain > 0
    assert 0 <= now.prices["bandwidth"] <= gain + 1e-9
    assert now.prices["memory"] == 0


# --- what must hold for any device ----------------------------------------------------------------


@pytest.mark.parametrize("resource", ["memory", "bandwidth", "compute"])
def test_more_of_anything_is_never_worse(resource: str) -> None:
    poor = device(20e9, 0.2e12, 5e-6, memory=1.2e9)
    values = []
    for factor in (1.0, 1.5, 4.0):
        choice = plan(scaled(poor, **{resource: factor}), tok=0.03).choice
        values.append(choice.value if choice else 0.0)
    # within a tie the quicker one is taken, which may be worth less by so much
    assert all(b >= a - 0.002 for a, b in pairwise(values))


def test_time_falls_with_the_ratio_and_rises_with_the_bits() -> None:
    rates, card = rates_of(LAPTOP), SMOLLM2[1]

    def ms(bits: int, ratio: float) -> float:
        return step_seconds(works_of(card, Candidate("x", bits, 128, ratio, 16)), rates, depth=2047)

    by_ratio = [ms(16, r) for r in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)]
    assert by_ratio == sorted(by_ratio, reverse=True)
    by_bits = [ms(b, 0.0) for b in (2, 3, 4, 5, 6, 8, 16)]
    assert by_bits == sorted(by_bits)


def test_an_infinite_device_takes_the_largest_model_as_it_is() -> None:
    endless = device(1e18, 1e19, 1e-12, memory=1e15)
    found = prescribe(endless, Workload(), SMOLLM2, bits=(16,), **SMALL)  # type: ignore[arg-type]
    assert found.choice is not None
    assert (found.choice.candidate.model, found.choice.candidate.bits) == ("smollm2-1.7b", 16)
    both = prescribe(endless, Workload(), SMOLLM2, **SMALL)  # type: ignore[arg-type]
    assert both.choice is not None
    assert both.choice.candidate.model == "smollm2-1.7b"
    assert both.choice.candidate.bits >= 8  # within a tie of 16


def test_below_the_launches_nothing_fits() -> None:
    found = plan(tok=1e-4)
    assert found.choice is None
    assert found.refused[0].binding == "time a token"
    assert [r.share for r in found.refused] == sorted(r.share for r in found.refused)
    assert "Nothing keeps the limits" in page.markdown(found)


def test_nominal_devices_keep_a_wider_margin() -> None:
    load_ = Workload(tok_budget_s=0.04)
    one = Candidate(SMOLLM2[2].name, 4, 128, 0.0, 16)
    sure = costs_of(SMOLLM2[2], one, LAPTOP, load_)
    unsure = costs_of(SMOLLM2[2], one, device(60e9, 0.6e12, 5e-6, spread=0.35), load_)
    assert unsure.token_s == pytest.approx(sure.token_s)
    assert unsure.violation > sure.violation


def test_the_pareto_set_is_one() -> None:
    found = plan(groups=(32, 128), ratios=(0.0, 0.3), kv_bits=(8, 16))
    points = [(o.costs.total_s, o.costs.memory, -o.quality.mean) for o in found.pareto]
    for a in points:
        assert not any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in points)
    for option in found.ranked:
        mine = (option.costs.total_s, option.costs.memory, -option.quality.mean)
        assert any(all(x <= y for x, y in zip(b, mine, strict=True)) for b in points)


def test_what_was_measured_replaces_what_was_drawn() -> None:
    before = plan()
    assert before.choice is not None
    after = plan(measured={before.choice.label: (0.01, 500)})
    assert after.choice is not None
    assert after.choice.label != before.choice.label
    assert before.measure
    assert all(n.gain > 0 for n in before.measure)


def test_probes_of_a_model_come_before_the_laws() -> None:
    card = msgspec.structs.replace(SMOLLM2[0], probes={"4": 0.5, "5": 0.2, "6": 0.08})
    draws = Draws(PRIOR)
    four = scores_of(card, Candidate("x", 4, 128, 0.0, 16), Laws(), draws)[1]
    eight = scores_of(card, Candidate("x", 8, 128, 0.0, 16), Laws(), draws)[1]
    law = scores_of(SMOLLM2[0], Candidate("x", 4, 128, 0.0, 16), Laws(), draws)[1]
    assert (four.added, four.source, law.source) == (0.5, "measured", "law")
    assert eight.source == "fitted to probes"
    assert 0 < eight.added < 0.05
    assert law.added == pytest.approx(0.1882, rel=0.01)


def test_equal_questions_have_equal_answers() -> None:
    assert msgspec.json.encode(plan()) == msgspec.json.encode(plan())
    assert plan().provenance["frontier"]["confidence"].startswith("low")


def test_risky_bits_and_unknown_caches_are_not_offered() -> None:
    found = {c.bits for _, c in candidates(SMOLLM2, LAPTOP)}
    assert found == {4, 5, 6, 8, 16}
    assert 2 in {c.bits for _, c in candidates(SMOLLM2, LAPTOP, allow_risky=True)}
    cuda = {c.kv_bits for _, c in candidates(SMOLLM2, load("jetson-orin-nano-8gb"))
            if c.provider == "cuda"}  # fmt: skip
    assert cuda == {16}
    assert not list(candidates(SMOLLM2, LAPTOP, load=Workload(batch=1000)))


# --- input ----------------------------------------------------------------------------------------


def test_a_bundle_s_graph_is_a_card() -> None:
    card = card_of(tiny_graph(), "tiny", tokens=1e9)
    assert (card.layers, card.width, card.heads, card.kv_heads) == (2, 64, 4, 2)
    assert (card.ff, card.vocabulary, card.tied) == (96, 260, True)
    assert card.linear == 2 * (128 * 64 + 64 * 64 + 3 * 64 * 96)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens is 0, expected 1 to 16777216"),
        ({"tok_budget_s": -1.0}, "tok_budget_s is -1.0, expected 1e-06 to 1e"),
        ({"total_budget_s": 5e-324}, "total_budget_s is 5e-324, expected 1e-06"),
        ({"tok_budget_s": float("nan")}, "tok_budget_s is nan"),
        ({"percentile": 2.0}, "percentile is 2.0"),
        ({"context": 100}, "do not fit a context of 100"),
        ({"kind": "song"}, "Invalid enum value 'song'"),
        ({"speed": 1}, "unknown field `speed`"),
    ],
)
def test_a_workload_that_means_nothing_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        workload_of(values)


CARD = """[[model]]
name = "{name}"
layers = 1
width = 1
heads = {heads}
kv_heads = {kv_heads}
head_dim = 1
ff = 1
vocabulary = 1
tokens = 1e9
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"no \[\[model\]\]|Expected"), ("[[model]]\nname = 'x'", "missing required field"),
        ("[[model]]\nname='x'\nlayers=0\nwidth=1\nheads=1\nkv_heads=1\nhead_dim=1\nff=1\n"
         "vocabulary=1\ntokens=1e9", "layers is 0, expected more than 0"),
        ("[[model]]\nname='x'\nlayers=1\nwidth=1\nheads=1\nkv_heads=1\nhead_dim=1\nff=1\n"
         "vocabulary=1\ntokens=1e9\nloss=nan", "loss is nan, expected more than 0"),
        (CARD.format(name="x", heads=4, kv_heads=3), "4 heads do not share 3 kv_heads evenly"),
        (CARD.format(name="a|b", heads=4, kv_heads=2), r"a name is 'a\|b', expected 1 to 80"),
        (CARD.format(name="x" * 81, heads=4, kv_heads=2), "expected 1 to 80 printable"),
        (CARD.format(name="x", heads=4, kv_heads=2) * 2, "two cards have one name"),
        (CARD.format(name="x", heads=4, kv_heads=2) + "[extra]\n", "'extra' is no table of it"),
        (CARD.format(name="x", heads=4, kv_heads=2) + "probes = {'99' = 0.1}", "probes has '99'"),
        ("".join(CARD.format(name=f"m{i}", heads=4, kv_heads=2) for i in range(101)),
         r"101 of \[\[model\]\], expected at most 100"),
    ],
)  # fmt: skip
def test_cards_that_are_none_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "cards.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RequestError, match=said):
        read_cards(path)


def test_the_verb(edgert: Edgert, tmp_path: Path) -> None:  # noqa: F811
    args = ["--bits", "4", "--bits", "8", "--ratio", "0", "--token", "0.05"]
    md, png = tmp_path / "plan.md", tmp_path / "plan.txt"  # PNG whatever its name
    ran = edgert("plan", "--device", "laptop-avx2", *args, "--report", md, "--json")
    assert (ran.code, ran.json["choice"]["candidate"]["bits"] in (4, 8)) == (0, True)
    assert md.read_text().startswith("# A plan for laptop-avx2")
    ran = edgert("plan", "--device", "laptop-avx2", *args[:6], "--token", "0.00001")
    assert (ran.code, "Nothing keeps the limits" in ran.out) == (1, True)
    bundle = tiny_bundle(tmp_path / "tiny.edge", quant="int4")
    ran = edgert("plan", "--device", "steam-deck", *args, "--models", bundle)
    assert (ran.code, "how many tokens it was trained on" in ran.err) == (2, True)
    ran = edgert("plan", "--device", "steam-deck", *args, "--models", bundle, "--tokens", "1e9")
    assert (ran.code, "**tiny int" in ran.out) == (0, True)
    pytest.importorskip("matplotlib")
    assert edgert("plan", "--device", "steam-deck", *args, "--picture", png).code == 0
    assert png.read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--width", "512"], "--width and --height are of pictures"),
        (["--bits", "9"], "--bits 9, expected some of"),
        (["--kind", "image", "--bits", "4"], "--bits is of text"),
        (["--kind", "image", "--ttft", "0.1"], "--ttft is of text"),
        (["--kind", "image", "--drafts"], "--drafts is of text"),
        (["--report", "nowhere/at/all.md"], "could not be written"),
    ],
)
def test_no_option_is_passed_over(edgert: Edgert, args: list[str], said: str) -> None:  # noqa: F811
    ran = edgert("plan", "--device", "laptop-avx2", *args)
    assert (ran.code, said in ran.err) == (2, True), ran.err


def test_a_plan_takes_a_fitted_frontier(edgert: Edgert, tmp_path: Path) -> None:  # noqa: F811
    fit = msgspec.to_builtins(PRIOR) | {"loss": 0.0, "preset": "edgert", "draws": [PRIOR.theta] * 3}
    path = tmp_path / "fits.json"
    path.write_text(json.dumps({"fits": {"gpqa": fit}}), encoding="utf-8")
    args = ["plan", "--device", "steam-deck", "--bits", "4", "--ratio", "0", "--fits", path]
    found = edgert(*args, "--json").json
    assert found["provenance"]["frontier"]["preset"] == "edgert"
    ran = edgert(*args, "--task", "maths")
    assert (ran.code, "expected fits of" in ran.err) == (2, True)


def test_a_linear_twin_looks_back_at_nothing() -> None:
    card: Card = msgspec.structs.replace(SMOLLM2[0], name="twin", linear_attention=1.0)
    one = Candidate("twin", 4, 128, 0.0, 16, linear_attention=1.0)
    rates = rates_of(LAPTOP)
    near, far = (step_seconds(works_of(card, one), rates, depth=d) for d in (0, 100_000))
    assert near == pytest.approx(far)


def test_a_draft_makes_tokens_quicker_and_takes_memory() -> None:
    """Same score, more memory; it pays where many of its tokens are accepted."""
    large, small = SMOLLM2[2], SMOLLM2[0]
    alone = Candidate(large.name, 8, 128, 0.0, 16)
    both, load_ = msgspec.structs.replace(alone, draft=small.name), Workload()
    one, two = costs_of(large, alone, LAPTOP, load_), costs_of(large, both, LAPTOP, load_, small)
    sure = msgspec.structs.replace(large, accepted={small.name: 4.0})
    three = costs_of(sure, both, LAPTOP, load_, small)
    assert three.token_s < one.token_s
    assert three.token_s == pytest.approx(two.token_s * 2.8 / 5)
    assert two.memory > one.memory
    assert two.ttft_s > one.ttft_s
    assert not {c.draft for _, c in candidates(SMOLLM2, LAPTOP)} - {""}
    pairs = {(c.model, c.draft) for _, c in candidates(SMOLLM2, LAPTOP, drafts=True) if c.draft}
    assert pairs == {("smollm2-1.7b", "smollm2-135m"), ("smollm2-1.7b", "smollm2-360m")}
    found = plan(device(60e9, 60e12, 5e-6), tok=0.02, drafts=True, cards=(small, sure))
    assert found.choice is not None
    assert found.choice.candidate.draft == small.name
