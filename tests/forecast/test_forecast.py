"""What is predicted: work of a graph, rates of a device, seconds and bytes."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from edgert.devices.load import load
from edgert.devices.profile import Product, Profile

from edgert.bundle.describe import inspect
from edgert.errors import DeviceError
from edgert.forecast.latency import (
    interval,
    paced_seconds,
    parts_of,
    prompt_seconds,
    run_parts,
    step_seconds,
    sum_seen,
    within,
)
from edgert.forecast.memory import cache_bytes, footprint, tokenizer_bytes
from edgert.forecast.nnls import nnls
from edgert.forecast.rates import alone_of, at_size, pace_of, product_of, rates_of, scaled
from edgert.forecast.shapes import Block, Shape, block, decoder
from edgert.forecast.starting import starting, touching
from edgert.forecast.work import lowered, weight_bytes, works
from edgert.session.cpu import CpuSession

from ..devices.test_profiles import measured
from ..tiny import tiny_bundle, tiny_graph, tiny_weights

SHAPE = Shape(3, 128, 4, 2, 32, 256)


def test_work_counts_every_weight_once_and_every_operation() -> None:
    graph = decoder(SHAPE)
    found = works(lowered(graph))
    layer = 128 * (4 + 2 * 2) * 32 + 128 * 128 + 3 * 128 * 256
    assert sum(w.ops for w in found) == 2 * (3 * layer + 512 * 128)
    assert weight_bytes(found) == 3 * layer * 288 / 512 + 512 * 128 * 544 / 512
    assert len([w for w in found if w.look_ops]) == 3
    assert {w.cache for w in found if w.look_ops} == {2 * 2 * 32 * 2}  # keys, values, 16 bits


def test_a_window_bounds_what_is_looked_at() -> None:
    found = works(lowered(tiny_graph(window=16, quant="int4")))
    assert [w.window for w in found if w.look_ops] == [0, 16]
    rates = rates_of(load("steam-deck"))
    wide = works(lowered(tiny_graph(quant="int4")))
    assert (
        parts_of(found, rates, depth=100)["attention"]
        < parts_of(wide, rates, depth=100)["attention"]
    )


@pytest.mark.parametrize(
    ("count", "depth", "window"), [(1, 0, 0), (5, 3, 0), (5, 3, 4), (8, 0, 3), (4, 10, 6)]
)
def test_pairs_that_are_seen(count: int, depth: int, window: int) -> None:
    each = [min(depth + i + 1, window or 10**9) for i in range(count)]
    assert sum_seen(count, depth, window) == sum(each)


def test_small_steps_take_one_thread_where_that_is_quicker() -> None:
    """As sessions do when another program holds a core: the team waits for a thread without one."""
    found, alone = works(lowered(decoder(SHAPE), threads=2)), rates_of(load("laptop-avx2"), 1)
    slower = lambda factor: msgspec.structs.replace(
        alone, threads=2, step_s=factor * step_seconds(found, alone) - step_seconds(found, alone)
        + alone.step_s,
    )  # fmt: skip
    single = step_seconds(found, alone)
    assert paced_seconds(found, slower(1.5), alone) == single
    kept = slower(1.05)  # not by so much that a session would notice
    assert paced_seconds(found, kept, alone) == pytest.approx(1.05 * single)
    assert paced_seconds(found, slower(1.5), None) == pytest.approx(1.5 * single)
    assert paced_seconds(found, alone, alone) == single


def test_only_the_cpu_has_a_choice_of_threads() -> None:
    profile = load("jetson-orin-nano-8gb")
    mine = alone_of(profile)
    assert mine is not None
    assert mine.threads == 1
    other = next(name for name in profile.providers if name != "cpu")
    assert alone_of(profile, other) is None


def test_a_prompt_is_its_chunks() -> None:
    found, rates = works(lowered(decoder(SHAPE))), rates_of(load("laptop-avx2"))
    chunks = step_seconds(found, rates, rows=256, logits=0) + step_seconds(
        found, rates, rows=44, depth=256
    )
    assert prompt_seconds(found, rates, 300) == pytest.approx(chunks)


@pytest.mark.parametrize("what", ["bandwidth", "compute"])
def test_a_better_device_is_never_slower(what: str) -> None:
    profile, found = load("raspberry-pi-5-8gb"), works(lowered(decoder(SHAPE)))
    for device in (profile, msgspec.structs.replace(profile, measured=measured(4))):
        better = scaled(device, **{what: 2.0})
        for rows, depth in ((1, 0), (1, 4096), (256, 0)):
            now, then = (
                step_seconds(found, rates_of(d, 4), rows=rows, depth=depth)
                for d in (device, better)
            )
            assert then <= now
        assert any(
            step_seconds(found, rates_of(better, 4), rows=r)
            < step_seconds(found, rates_of(device, 4), rows=r)
            for r in (1, 256)
        )


def test_more_threads_are_not_slower_on_a_data_sheet() -> None:
    found = works(lowered(decoder(SHAPE)))
    times = [step_seconds(found, rates_of(load("apple-m2"), n)) for n in (1, 2, 4)]
    assert times == sorted(times, reverse=True)


def test_rates_of_a_probed_device_are_the_probe_s() -> None:
    profile = msgspec.structs.replace(load("steam-deck"), measured=measured(2))
    assert profile.measured is not None
    assert rates_of(profile, 2) == rates_of(profile, 8) == profile.measured.rates[0]
    assert profile.spread == 0.1
    with pytest.raises(DeviceError, match=r"has no provider 'cuda', expected one of \['cpu'\]"):
        rates_of(profile, provider="cuda")


def test_kernels_that_were_not_probed_take_their_kin() -> None:
    rates = rates_of(msgspec.structs.replace(load("steam-deck"), measured=measured(2)))
    assert product_of(rates, "planes3").kernel == "int4"
    assert product_of(rates_of(load("steam-deck")), "f16").kernel == "float"
    assert product_of(rates_of(load("steam-deck")), "int8").kernel == "codes"


def test_rates_between_sizes_lie_on_a_line_of_logarithms() -> None:
    pairs = ((1e6, 40.0), (1e8, 10.0))
    assert [at_size(pairs, size) for size in (1e3, 1e6, 1e7, 1e8, 1e12)] == pytest.approx(
        [40, 40, 20, 10, 10]
    )


def test_bands_and_margins() -> None:
    band = interval(1.0, 0.2)
    assert band.low * band.high == pytest.approx(1.0)
    assert math.log(band.high) == pytest.approx(1.6449 * 0.2, rel=1e-4)
    assert within(1.0, 2.0, 0.35) == pytest.approx(math.exp(1.6449 * 0.35) / 2, rel=1e-4)


def test_memory_is_what_a_session_takes() -> None:
    graph = decoder(SHAPE._replace(vocabulary=2048))
    found = footprint(graph, tokens=256, base=0.0)
    session = CpuSession(graph, tiny_weights(graph), threads=1, context=256)
    try:
        assert found.weights == pytest.approx(session.packed_weights.nbytes, rel=0.02)
        page = session.pool.keys["kv0"].shape[1] + session.pool.values["kv0"].shape[1]
        assert found.cache == 3 * 4 * page
        assert found.arena >= session.program().nbytes
    finally:
        session.close()


def test_memory_with_a_head_is_that_of_both() -> None:
    graph, head = decoder(SHAPE), decoder(SHAPE._replace(layers=1))
    apart, both = (footprint(graph, tokens=64, head=h) for h in (None, head))
    alone = footprint(head, tokens=64, base=0.0)
    assert both.weights == apart.weights + alone.weights
    assert both.arena > apart.arena + alone.arena, "the graph has a program more, with its taps"
    assert both.rest == apart.rest


def test_memory_grows_with_what_is_remembered() -> None:
    graph = decoder(SHAPE)
    totals = [footprint(graph, tokens=n).total for n in (1, 64, 65, 4096)]
    assert totals == sorted(totals)
    assert cache_bytes(graph, 65, 1) < cache_bytes(graph, 65, 2)
    rest = footprint(graph, tokens=1, tokenizer=1e6).rest - footprint(graph, tokens=1).rest
    assert rest > 1e6


def test_inspect_tells_the_same_memory(tmp_path: Path) -> None:
    graph = tiny_graph(quant="int4")
    path = tiny_bundle(tmp_path / "tiny.edge", graph=graph)
    assert inspect(path).memory == round(footprint(graph, tokens=graph.context).total)


@pytest.mark.parametrize("seed", range(5))
def test_nnls_meets_its_conditions(seed: int) -> None:
    """Karush-Kuhn-Tucker: no gradient points into the cone, none is left along it."""
    rng = np.random.default_rng(seed)
    a, b = rng.standard_normal((30, 8)), rng.standard_normal(30)
    x = nnls(a, b)
    gradient = a.T @ (b - a @ x)
    assert (x >= 0).all()
    assert gradient.max() < 1e-8
    assert np.abs(gradient[x > 0]).max(initial=0) < 1e-8
    known = np.array([0.0, 2.0, 0.0, 3.0, 0.5, 0.0, 1.0, 4.0])
    assert nnls(a, a @ known) == pytest.approx(known, abs=1e-8)


def probed(profile: Profile, **rates: object) -> Profile:
    """A profile with other measured rates."""
    found = measured(2)
    one = msgspec.structs.replace(found.rates[0], **rates)
    return msgspec.structs.replace(profile, measured=msgspec.structs.replace(found, rates=(one,)))


def test_products_are_bound_by_bytes_or_by_operations() -> None:
    found = works(lowered(decoder(SHAPE)))
    slow = (Product("int4", ((1.0, 1e6),), 1e15),)
    rates = rates_of(probed(load("steam-deck"), products=slow))
    assert parts_of(found, rates)["products"] == pytest.approx(weight_bytes(found) / 1e6)
    slow = (Product("int4", ((1.0, 1e15),), 1e6),)
    rates = rates_of(probed(load("steam-deck"), products=slow))
    ops = sum(w.ops * (256 if w.rows == "T" else 1) for w in found)
    assert parts_of(found, rates, rows=256)["products"] == pytest.approx(ops / 1e6)


def test_an_output_of_many_rows_costs_a_constant_besides() -> None:
    product = Product("int4", ((1.0, 1e15),), 1e9, 1e-3)
    rates = rates_of(probed(load("steam-deck"), products=(product,)))
    found = [w for w in works(lowered(decoder(SHAPE))) if w.kernel == "int4"]
    assert [w.outs for w in found[:4]] == [8 * 32, 128, 2 * 256, 128]
    one, many = (parts_of(found, rates, rows=rows)["products"] for rows in (1, 64))
    assert one == pytest.approx(sum(w.ops for w in found) / 1e9)
    assert many == pytest.approx(64 * sum(w.ops / 1e9 + 1e-3 * w.outs for w in found))
    faster = rates_of(scaled(probed(load("steam-deck"), products=(product,)), compute=2.0))
    assert faster.products[0].out_s == 5e-4


def test_convolutions_and_attention_of_pictures_are_work() -> None:
    (one, two) = works(lowered(block(Block(4, 16, 2))))
    assert (one.kernel, one.rows, one.ops) == ("conv_f16", "16", 2.0 * 9 * 16 * 16)
    assert two.ops == one.ops
    tiles = [w for w in works(lowered(block(Block(32, 64, 1)))) if w.kernel == "conv_winograd"]
    assert [w.ops for w in tiles] == [2.0 * 4 * 64 * 64]  # 16 products for four outputs
    looking = [w for w in works(lowered(block(Block(4, 32, 1, heads=2)))) if w.against]
    assert [(w.kernel, w.against, w.look_ops) for w in looking] == [("dot_attention", "16", 128.0)]
    rates = rates_of(load("steam-deck"))
    pairs = 16 * 16 * 128.0
    assert run_parts(looking, rates, {})["attention"] == pytest.approx(pairs / rates.attend_ops_s)


def test_norms_and_sums_cost_their_values_and_products_their_rows_besides() -> None:
    base = rates_of(probed(load("steam-deck"), rows_s=1e9))
    rates = [msgspec.structs.replace(base, row_s=row_s) for row_s in (0.0, 1e-3)]
    norms = works(lowered(block(Block(4, 16, 2, kernel=0))))
    values = 16 * sum(work.values for work in norms)
    for one in rates:
        assert run_parts(norms, one, {})["rest"] == pytest.approx(values / 1e9)
    found = works(lowered(decoder(SHAPE)))
    none, some = (parts_of(found, one, rows=64)["rest"] for one in rates)
    counted = [w for w in found if (w.nbytes or w.look_ops) and w.rows != "R"]
    assert some - none == pytest.approx(64e-3 * sum(work.launches for work in counted))


def test_kernels_of_pictures_take_their_kin() -> None:
    direct = Product("conv_f16", ((1.0, 1e9),), 5e9)
    rates = rates_of(probed(load("steam-deck"), products=(*measured(2).rates[0].products, direct)))
    assert product_of(rates, "conv_winograd") == direct
    assert product_of(rates, "dot_attention").ops_s == rates.attend_ops_s
    assert product_of(rates, "planes3").kernel == "int4"
    assert product_of(rates_of(load("steam-deck")), "conv_f16").kernel == "float"


def test_white_space_of_a_tokenizer_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text('{\n  "a": [\n\t1, 2 ]\n}', encoding="utf-8")
    assert tokenizer_bytes(path) == len('{"a":[1,2]}')


def test_starting_grows_with_what_is_read_and_with_python_s_pace() -> None:
    small, large = starting(nodes=100), starting(nodes=1000, tokenizer=1e6)
    assert small.load < large.load < large.ready
    assert starting(nodes=100, weights=1e9).load == pytest.approx(small.load + 0.3)
    assert starting(nodes=100, pace=2.0).ready == pytest.approx(2 * small.ready)
    assert touching(2e9) == 2 * touching(1e9)
    slow = load("raspberry-pi-5-8gb")
    assert pace_of(slow) == pytest.approx(3e9 / slow.cpu.clock_hz.value)
    known = msgspec.structs.replace(slow, measured=msgspec.structs.replace(measured(2), pace=0.5))
    assert pace_of(known) == 0.5
    assert pace_of(msgspec.structs.replace(slow, measured=measured(2))) == 1.0
