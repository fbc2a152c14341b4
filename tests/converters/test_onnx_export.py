"""`export`: an .onnx beside the weights, without a second copy, and never a broken bundle."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from edgert.converters import onnx_emit
from edgert.converters.onnx_emit import export
from edgert.kernels.embed import embed
from edgert.kernels.quant import Matrix, Quantized
from edgert.kernels.states import BorrowedState

from edgert.bundle import Bundle
from edgert.cli.export import command
from edgert.errors import ConvertError, ResourceError
from edgert.evaluation.verify import verify_bundle
from edgert.graph import Graph
from edgert.session.base import Feed
from edgert.session.onnx_io import PLAIN, Variant
from edgert.session.options import SessionOptions
from edgert.session.ort import open_ort
from edgert.storage.lock import FileLock

from ..onnx_model import emit_model
from ..session import toy
from ..tiny import tiny_bundle, tiny_graph, tiny_weights


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return tiny_bundle(tmp_path / "tiny.edge", quant="mixed")


def _digests(path: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in path.iterdir()}


def test_export_adds_a_file_and_nothing_else(bundle: Path) -> None:
    before = _digests(bundle)
    (made,) = export(bundle)
    after = _digests(bundle)
    assert made.name == "model.onnx"
    assert set(after) - set(before) == {"model.onnx"}
    assert {name for name in before if before[name] != after[name]} == {"manifest.json"}
    assert verify_bundle(bundle, SessionOptions(device="ort-cpu")).ok
    assert [p.name for p in bundle.parent.iterdir() if "partial" in p.name] == []


def test_weights_are_bytes_of_the_bundles_own_file(bundle: Path) -> None:
    (made,) = export(bundle)
    assert made.stat().st_size < 20_000
    whole = onnx.load(made)  # resolves the external data
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in whole.graph.initializer}
    with Bundle.open(bundle) as opened:
        for name, weight in opened.weights().items():
            if name == "inv_freq":
                continue  # the session makes tables of it
            if isinstance(weight, Quantized):
                np.testing.assert_array_equal(tensors[f"{name}.q"], weight.q)
                np.testing.assert_array_equal(tensors[f"{name}.scales"], weight.scales)
            else:
                np.testing.assert_array_equal(tensors[name], weight)


def test_export_is_deterministic_and_repeatable(bundle: Path) -> None:
    export(bundle)
    first = _digests(bundle)
    export(bundle)
    assert _digests(bundle) == first


def test_unknown_manifest_fields_survive(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"x-note": "ü"}), encoding="utf-8")
    export(bundle)
    assert json.loads(path.read_text(encoding="utf-8"))["x-note"] == "ü"


def test_a_failure_leaves_the_bundle_as_it_was(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _digests(bundle)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("killed here")

    monkeypatch.setattr(onnx_emit, "emit", fails)
    with pytest.raises(RuntimeError, match="killed here"):
        export(bundle)
    assert _digests(bundle) == before
    assert verify_bundle(bundle).ok


def test_two_writers_do_not_race(bundle: Path) -> None:
    lock = FileLock(bundle.with_name(f"{bundle.name}.lock"), "the other writer")
    with pytest.raises(ResourceError, match="in use by process"):
        export(bundle)
    lock.close()
    export(bundle)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "f64"}, "'f64'"),
        ({"rows": 8, "capacity": 64}, "standard dialect"),
        ({"rows": 8, "capacity": 4, "standard": True}, "0 < rows <= capacity"),
        ({"capacity": 4, "standard": True}, "0 < rows <= capacity"),
    ],
)
def test_options_that_contradict(bundle: Path, options: dict[str, object], says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        export(bundle, **options)  # type: ignore[arg-type]


def test_taps_and_embeddings(bundle: Path) -> None:
    (made,) = export(bundle, taps=["x1", "logits", "x1"], embeddings=True)
    assert made.name == "model.emb.onnx"
    with (
        Bundle.open(bundle) as opened,
        contextlib.closing(open_ort(opened, SessionOptions("ort-cpu"))) as s,
    ):
        tokens = np.arange(9, dtype=np.int32)
        (by_tokens,) = s.step([Feed(s.new_state(), tokens, "all", taps=("x1",))])
        table = opened.weights()["embed"]
        rows = embed([tokens], {"weight": table}, {"scale": 1.0})
        (by_rows,) = s.step([Feed(s.new_state(), embeddings=rows, logits="all", taps=("x1",))])
    np.testing.assert_array_equal(by_tokens.logits, by_rows.logits)
    np.testing.assert_array_equal(by_tokens.taps["x1"], by_rows.taps["x1"])


def test_the_command_takes_taps_and_embeddings(bundle: Path) -> None:
    done = CliRunner().invoke(command, [str(bundle), "--embeddings", "--tap", "x1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["files"] == ["model.emb.onnx"]
    model = onnx.load(bundle / "model.emb.onnx", load_external_data=False)
    assert [value.name for value in model.graph.input][:2] == ["x0", "rows"]
    assert [value.name for value in model.graph.output][:2] == ["logits", "x1"]


def test_too_many_taps_are_refused(tmp_path: Path) -> None:
    graph = tiny_graph(quant="f32", layers=60, context=64)
    taps = [node.output for node in graph.nodes][1:-1]
    with pytest.raises(ConvertError, match="taps take"):
        emit_model(graph, tiny_weights(graph), tmp_path, taps=taps)


def test_what_cannot_be_emitted_says_so(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"computes \['layers.9'\]"):
        export(bundle, taps=["layers.9"])
    for index, (changed, options, says) in enumerate(UNFIT):
        graph, weights = changed()
        folder = tmp_path / str(index)
        folder.mkdir()
        with pytest.raises(ConvertError, match=says):
            emit_model(graph, weights, folder, Variant(**options))


def _renamed(old: str, new: str) -> tuple[Graph, dict[str, Matrix]]:
    graph, weights = toy.shared()
    nodes = tuple(
        node.__class__(
            node.op, tuple(new if n == old else n for n in node.inputs),
            new if node.output == old else node.output, node.weights, node.attrs, node.state,
        )
        for node in graph.nodes
    )  # fmt: skip
    return graph.replace(nodes=nodes), weights


def _borrowing() -> tuple[Graph, dict[str, Matrix]]:
    graph, weights = toy.shared()
    lent = BorrowedState("kv", part="model")
    return graph.replace(states={**graph.states, "lent": lent}), weights


UNFIT: list[tuple[Callable[[], tuple[Graph, dict[str, Matrix]]], dict[str, Any], str]] = [
    (lambda: _renamed("x0", "positions"), {"standard": True}, r"\['positions'\] would be"),
    (_borrowing, {}, "the cache of part 'model'"),
    (lambda: toy.turning("", embeddings=True), {"embeddings": True}, "expected one embed node"),
    (
        lambda: toy.function("N", "M", 8, 8),
        {"standard": True, "rows": 4, "capacity": 8}, r"inputs of \['M', 'N'\] rows",
    ),
]  # fmt: skip


def test_the_interface_of_a_text_model_stays(tmp_path: Path) -> None:
    """Names that .onnx files of bundles in use have."""
    graph = tiny_graph(layers=1)
    path = emit_model(graph, tiny_weights(graph), tmp_path)
    model = onnx.load(path, load_external_data=False)
    assert [value.name for value in model.graph.input] == [
        "tokens", "rows", "seqlens_k", "total_sequence_length", "cos.inv_freq", "sin.inv_freq",
        "past_key.kv0", "past_value.kv0",
    ]  # fmt: skip
    assert [value.name for value in model.graph.output] == [
        "logits", "present_key.kv0", "present_value.kv0",
    ]  # fmt: skip
    assert {entry.key for entry in model.metadata_props} == {
        "edgert.half", "edgert.standard", "edgert.rows", "edgert.capacity", "edgert.graph",
    }  # fmt: skip
    path = emit_model(graph, tiny_weights(graph), tmp_path, Variant(standard=True))
    model = onnx.load(path, load_external_data=False)
    assert [value.name for value in model.graph.input] == [
        "tokens", "rows", "positions", "cos.inv_freq", "sin.inv_freq", "mask.0",
        "past_key.kv0", "past_value.kv0",
    ]  # fmt: skip
    assert [value.name for value in model.graph.output] == [
        "logits", "new_key.kv0", "new_value.kv0",
    ]  # fmt: skip


def test_names_of_variants() -> None:
    fixed = Variant(True, True, 8, 64)
    embeddings = Variant(True, embeddings=True)
    for variant in (PLAIN, Variant(True), Variant(False, True), fixed, embeddings):
        assert Variant.of_file("model", f"model{variant.suffix}.onnx") == variant
    assert Variant.of_file("model", "draft.onnx") is None
    assert Variant.of_file("model", "model.onnx.bak") is None
