"""Benchmarks of models that draw, on tiny pipelines: rows that are resumed, pages, peers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.kernels.encodings import dequantize

from benchmarks import (
    image_caching,
    image_caching_page,
    image_engines,
    image_fidelity,
    image_peers,
    plain_weights,
    random_pictures,
)
from benchmarks.image_runs import Protocol, Workers
from edgert.bundle import Bundle
from tests.image import pipelines

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class-conditional pipeline with a flow's scheduler."""
    folder = tmp_path_factory.mktemp("labelled") / "pipe"
    pipelines.write_dit(folder)
    shutil.rmtree(folder / "scheduler")
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_config(folder / "scheduler")
    kind = ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    pipelines.edit_json(folder / "model_index.json", scheduler=kind)
    return folder


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned") / "pipe"
    pipelines.write_pixart(folder)
    return folder


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles in f32 and int8, of rows that are whole groups."""
    small = {"num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 32, "sample_size": 8}
    random_pictures.SHAPES["tiny"] = {**random_pictures.DIT, **small}
    folder = random_pictures.random_pipeline("tiny", tmp_path_factory.mktemp("blocks") / "pipe")
    return random_pictures.bundles_of(folder, ["f32", "int8"])


def test_rows_are_kept_and_become_a_page(labelled: Path, tmp_path: Path) -> None:
    bundle, out = tmp_path / "pipe.edge", tmp_path / "rows.jsonl"
    convert(labelled, bundle, quant="f32", progress=False)
    protocol = Protocol(str(bundle), steps=12)
    with Workers(protocol, 1) as workers:
        bench = image_caching.Bench(
            protocol, image_caching.Counts(2, 2, 3), workers, out=out, work=tmp_path / "work"
        )
        bench.prepare()
        for name in ("SenCache", "TeaCache", "Fixed", "Vanilla", "Fixed"):
            bench.row(name, 7.0)
    lines = [json.loads(text) for text in out.read_text("utf-8").splitlines()]
    rows = {x["method"]: x for x in lines if x["kind"] == "row"}
    kinds = [x["kind"] for x in lines]
    assert (kinds.count("row"), kinds.count("reference")) == (4, 1)
    assert rows["Fixed"]["evaluations"] == rows["Vanilla"]["evaluations"] == [7, 7, 7]
    assert rows["Fixed"]["l2"] != rows["Vanilla"]["l2"]
    assert all(0 < x < 1 for row in rows.values() for x in row["l2"])
    page = tmp_path / "page.md"
    shutil.copy(image_caching_page.PAGE, page)
    image_caching_page.write_page(out, page)
    text = page.read_text("utf-8")
    assert "7 of 12 evaluations" in text
    assert all(name in text for name in rows)


@pytest.mark.parametrize("kind", ["labelled", "captioned"])
def test_peers_compute_the_same(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(kind)
    convert(folder, tmp_path / "x.edge", quant="f32", progress=False)
    inputs = image_engines.inputs_of(tmp_path / "x.edge")
    bundles = {"f32": tmp_path / "x.edge"}
    names = ("torch f32", "edgert f32")
    with image_engines.opened(folder, bundles, inputs, 1, names) as (engines, missing):
        assert not missing
        torch, ours = (image_peers.evaluated(engine, inputs) for engine in engines)
    assert np.linalg.norm(ours - torch) < 1e-4 * np.linalg.norm(torch)


def test_a_peer_that_cannot_be_opened_is_named(labelled: Path, monkeypatch: Any) -> None:
    def fail(*given: Any, **options: Any) -> Any:
        raise ModuleNotFoundError("No module named 'openvino'")

    monkeypatch.setattr(image_engines, "openvino_engine", fail)
    inputs = image_engines.Inputs(np.zeros((1, 4, 8, 8), np.float32), 1.0, {})
    with image_engines.opened(labelled, {}, inputs, 1, ["openvino f32"]) as (found, missing):
        assert not found
        assert missing == {"openvino f32": "ModuleNotFoundError: No module named 'openvino'"}


def test_fidelity_is_of_the_same_noise(blocks: dict[str, Path]) -> None:
    runs = image_fidelity.Runs(prompts=2, seeds=3, steps=8, threads=1, batch=2)
    (line,) = image_fidelity.compared(blocks, runs)
    assert (line["quant"], len(line["psnr"])) == ("int8", 6)
    assert all(15 < db < 100 for db in line["psnr"])
    same = image_fidelity.compared({"f32": blocks["f32"], "again": blocks["f32"]}, runs)
    assert same[0]["psnr"] == [100.0] * 6
    text = image_fidelity.tables([{**line, "model": "tiny"}])
    assert f"{np.mean(line['psnr']):.2f}" in text


def test_ratios_are_medians_over_rounds() -> None:
    spent = {"a": [1.0, 2.0, 4.0], "b": [2.0, 6.0, 4.0]}
    assert image_peers.ratio(spent, "a", "b") == 2
    calls: list[str] = []
    runs = {name: lambda n=name: calls.append(n) for name in "ab"}
    assert {n: len(t) for n, t in image_peers.interleaved(runs, 2).items()} == {"a": 2, "b": 2}
    assert calls == ["a", "b", "b", "a"]


def test_plain_weights_are_the_same_numbers(blocks: dict[str, Path], tmp_path: Path) -> None:
    plain = plain_weights.plain_bundle(blocks["int8"], tmp_path / "f32.edge")
    assert plain_weights.plain_bundle(blocks["int8"], plain) == plain
    half = plain_weights.plain_bundle(blocks["int8"], tmp_path / "f16.edge", "f16")
    with Bundle.open(blocks["int8"]) as old, Bundle.open(plain, verify="full") as new:
        graph = new.graph("denoiser")
        assert {weight.encoding for weight in graph.weights.values()} == {"f32"}
        weights, stored = new.weights("denoiser"), old.weights("denoiser")
        assert any(not isinstance(weight, np.ndarray) for weight in stored.values())
        for name, weight in weights.items():
            assert np.array_equal(np.asarray(weight), dequantize(stored[name]))
    with Bundle.open(half) as new:
        kinds = {weight.encoding for weight in new.graph("denoiser").weights.values()}
        assert kinds == {"f16", "f32"}
