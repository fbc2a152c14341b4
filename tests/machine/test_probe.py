"""The probe: what it runs, what its fit finds, what it writes."""

from __future__ import annotations

import numpy as np
import pytest
from edgert.devices.load import parse, to_toml
from edgert.devices.profile import Rates

from edgert.errors import DeviceError, RequestError
from edgert.forecast.rates import pace_of
from edgert.forecast.shapes import Block, decoder, graph_of
from edgert.machine import probe as module
from edgert.machine.here import differences
from edgert.machine.probe_fit import errors, fit, fit_each, predicted
from edgert.machine.probe_runs import (
    CODES,
    Run,
    Timed,
    check_encodings,
    random_weights,
    runs,
    timed,
)

from ..devices.test_profiles import measured

READ = ((1e6, 5e10),)


def simulated(rates: Rates, noise: float = 0.0) -> list[Timed]:
    """Steps of all runs, as a machine with these rates would take them."""
    rng = np.random.default_rng(0)
    found = []
    for run in runs():
        for rows, depth in run.steps:
            step = Timed(run, rows, depth, rates.threads, 1.0)
            seconds = predicted(step, rates) * float(np.exp(noise * rng.standard_normal()))
            found.append(step._replace(seconds=seconds))
    return found


def truth() -> Rates:
    import msgspec

    from ..devices.test_profiles import Product

    products = tuple(
        Product(kernel, ((5e6, 3e10 * f), (5e7, 2e10 * f), (2e8, 1e10 * f)), 3e11 * f)
        for kernel, f in (("f16", 1.1), ("int4", 1.0), ("int8", 1.3))
    )
    products += tuple(
        Product(kernel, ((1.0, 1e18),), ops)
        for kernel, ops in (("conv_f16", 7e10), ("conv_winograd", 4e10), ("dot_attention", 9e10))
    )
    return msgspec.structs.replace(measured(1).rates[0], products=products, read=READ)


@pytest.mark.slow  # a lowering for each run
def test_a_fit_finds_the_rates_that_made_the_times() -> None:
    rates = truth()
    found, _ = fit(simulated(rates), READ)
    off = errors(simulated(rates), found)
    assert np.abs(off).max() < 0.15  # sizes between those that were timed lie on lines
    assert found.launch_s == pytest.approx(rates.launch_s, rel=0.05)
    assert found.attend_bytes_s == pytest.approx(rates.attend_bytes_s, rel=0.05)
    for kernel in ("int4", "conv_f16", "conv_winograd", "dot_attention"):
        (one,), (wanted,) = (
            [p for p in some.products if p.kernel == kernel] for some in (found, rates)
        )
        assert one.ops_s == pytest.approx(wanted.ops_s, rel=0.05)


@pytest.mark.slow
def test_noise_makes_predictions_as_wrong_as_it_is() -> None:
    found, _ = fit(simulated(truth(), noise=0.05), READ)
    off = errors(simulated(truth()), found)
    assert np.median(np.abs(off)) < 0.06


@pytest.mark.slow
def test_what_one_thread_found_out_steadies_the_rates_of_several() -> None:
    import msgspec

    replace, one = msgspec.structs.replace, truth()
    products = tuple(replace(p, ops_s=2 * p.ops_s, out_s=p.out_s / 2) for p in one.products)
    two = replace(
        one, threads=2, products=products, row_s=one.row_s / 2, rows_s=2 * one.rows_s,
        attend_ops_s=2 * one.attend_ops_s, attend_row_ops_s=2 * one.attend_row_ops_s,
    )  # fmt: skip
    times = {1: simulated(one), 2: simulated(two, noise=0.15)}
    alone, _ = fit(times[2], READ)
    both = fit_each(times, {1: READ, 2: READ})
    assert [rates.threads for rates in both] == [1, 2]

    def off(rates: Rates) -> float:
        names = ("attend_ops_s", "attend_row_ops_s")
        shares = [getattr(rates, name) / getattr(two, name) for name in names]
        shares += [a.ops_s / b.ops_s for a, b in zip(rates.products, products, strict=True)]
        return float(np.abs(np.log(np.clip(shares, 1e-3, 1e3))).max())

    assert off(both[1]) < 0.6 * off(alone)
    assert off(both[1]) < 0.3


def test_too_few_steps_are_no_machine() -> None:
    run = runs()[0]
    with pytest.raises(DeviceError, match="1 timed steps, expected some of each kind"):
        fit([Timed(run, 1, 0, 1, 1e-3)], READ)


def test_runs_hold_some_back() -> None:
    names = ["held out", "held out, wide", "held out, drawing"]
    assert [run.name for run in runs() if not run.kept] == names
    assert {run.shape.encoding for run in runs()} == set(CODES)


def test_the_largest_weights_are_timed_where_there_is_memory() -> None:
    names = {run.name for run in runs()}
    assert names >= {"int4-g32, 80 layers", "int8-g32, 40 layers", "f16, 20 layers"}
    few = {run.name for run in runs(free=3e8)}
    assert names - few == {
        "int4-g32, 30 layers", "int4-g32, 80 layers", "int8-g32, 18 layers", "int8-g32, 40 layers",
        "f16, 9 layers", "f16, 20 layers",
    }  # fmt: skip


@pytest.mark.parametrize("encoding", CODES)
def test_random_weights_are_of_their_encoding(encoding: str) -> None:
    shape = runs()[0].shape._replace(layers=1, encoding=encoding)
    graph = decoder(shape)
    weights = random_weights(graph)
    assert weights["l0.norm1"] is not None
    run = Run("tiny", shape, ((1, 0), (1, 70), (5, 3)))
    found = list(timed(run, 1, seconds=0.0))
    assert [(step.rows, step.depth) for step in found] == [(1, 0), (1, 70), (5, 3)]
    assert all(0 < step.seconds < 5 for step in found)


@pytest.mark.parametrize(
    "block", [Block(4, 32, 2, heads=2), Block(4, 16, 2), Block(4, 16, 2, kernel=0)]
)
def test_blocks_of_pictures_run(block: Block) -> None:
    graph = graph_of(block)
    assert graph.shapes()["x2"] == (16, block.width)
    (found,) = timed(Run("tiny", block, ((0, 0),)), 1, seconds=0.0)
    assert 0 < found.seconds < 5
    assert errors([found], measured(1).rates[0])[0] > -30


def test_an_encoding_that_no_kernel_reads_is_refused() -> None:
    assert check_encodings(("int4-g32",)) == ("int4-g32",)
    with pytest.raises(RequestError, match="encoding 'int9' cannot be probed"):
        check_encodings(("int9",))


def test_a_probe_writes_a_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the timing replaced: the profile is whole, and is what is read again."""
    monkeypatch.setattr(module.Looks, "look", lambda self, progress: progress("a run", 0.5))
    monkeypatch.setattr(module.Looks, "rates", lambda self: ([measured(1).rates[0]], 0.12))
    monkeypatch.setattr(module, "own_process", lambda threads, cpu: (8e7, 1.5))
    monkeypatch.setattr(module, "storage_read", lambda: 1e9)
    told: list[str] = []
    profile = module.probe(name="My Board!", progress=lambda what, share: told.append(what))
    assert profile.name == "my-board"
    assert parse(to_toml(profile).encode(), "here") == profile
    assert profile.spread == 0.12
    assert pace_of(profile) == 1.5
    assert differences(profile) == []
    assert told == ["a run", "a run", "memory of a process", "storage"]


def test_each_step_counts_as_quick_as_any_look_found_it(monkeypatch: pytest.MonkeyPatch) -> None:
    paces = iter([3.0, 1.0, 2.0])
    pace = [0.0]

    def timed(run: Run, threads: int, options: object) -> list[Timed]:
        return [Timed(run, 1, 0, threads, pace[0] / threads)]

    monkeypatch.setattr(module, "_timed", timed)
    monkeypatch.setattr("edgert.kernels.bandwidth.read_gbps", lambda *_, **__: 6 / pace[0])
    looks = module.Looks(module.Options((1, 2), quick=True))
    for pace[0] in paces:
        looks.look()
    assert {step.seconds for step in looks.best.values()} == {1.0, 0.5}
    assert len(looks.best) == 2 * len(runs(quick=True))
    assert set(looks.read.values()) == {6e9}


def test_slow_kernels_get_fewer_rows_and_fewer_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = runs()[0].shape._replace(layers=1)
    wanted = Run("tiny", shape, ((1, 0), (64, 0), (64, 70)))
    assert [step.rows for step in timed(wanted, 1, seconds=0.0)] == [1, 64, 64]
    monkeypatch.setattr("edgert.machine.probe_runs.SLOW", 0.0)
    assert [step.rows for step in timed(wanted, 1, seconds=0.0)] == [1, 32, 32]
    assert all(0 < step.seconds < 5 for step in timed(wanted, 1, seconds=1e-9))

    def slow(run: Run, threads: int, options: object) -> list[Timed]:
        layers = getattr(run.shape, "layers", 1)
        return [Timed(run, 1, 0, threads, 0.1 * layers)]

    monkeypatch.setattr(module, "_timed", slow)
    monkeypatch.setattr("edgert.kernels.bandwidth.read_gbps", lambda *_, **__: 6.0)
    looks = module.Looks(module.Options((1,)))
    looks.look()
    sizes = {run.name for run in runs() if "layers" in run.name and "g32" in run.name}
    assert {name for _, name, _, _ in looks.best if name in sizes} == {
        "int4-g32, 1 layers", "int4-g32, 6 layers", "int4-g32, 14 layers",
        "int8-g32, 1 layers", "int8-g32, 4 layers", "int8-g32, 8 layers", "int8-g32, 18 layers",
    }  # fmt: skip
