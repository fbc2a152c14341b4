"""Pictures through onnxruntime: files of pieces and sizes, the same pictures as on the CPU, what a
stranger's file cannot do."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from edgert.converters.convert import convert
from edgert.converters.onnx_emit import export
from onnx import helper

import edgert
from edgert.bundle.reader import Bundle
from edgert.cli import run
from edgert.errors import BundleError, ConvertError, DeviceError
from edgert.image import emissions, network
from edgert.image.model import ImageModel
from edgert.session import SessionOptions, auto_device, open_session, providers
from edgert.session.onnx_io import Variant
from edgert.session.onnx_names import PIECES, Emission
from edgert.session.ort import OrtSession
from edgert.session.ort_choice import emissions as listed
from edgert.session.ort_graphs import Held
from tests.closeness import assert_close
from tests.image import pipelines
from tests.tiny import tiny_bundle

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = {"dit": "dog", "pixart": "a cat"}
SIZE = (128, 64)


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles in f32, exported for their own size."""
    folder, found = tmp_path_factory.mktemp("ort"), {}
    for kind, write in (("dit", pipelines.write_dit), ("pixart", pipelines.write_pixart)):
        write(folder / kind)
        found[kind] = folder / f"{kind}.edge"
        convert(folder / kind, found[kind], quant="f32", progress=False)
        export(found[kind])
    return found


@pytest.fixture
def bundle(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the captioned one, to be changed."""
    return Path(shutil.copytree(made["pixart"], tmp_path / "pixart.edge"))


def drawn(path: Path, device: str, prompt: str, **asked: Any) -> tuple[np.ndarray, np.ndarray]:
    """The pixels of a picture, and the latent that it was decoded from."""
    with edgert.load(path, device=device, kind="image", threads=2) as model:
        seen, real = list[np.ndarray](), model.decode
        model.decode = lambda latent: seen.append(latent) or real(latent)  # type: ignore[method-assign]
        image = model(prompt, seed=3, **asked)[0]
    return np.asarray(image, np.float64), seen[-1]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(float(np.mean((a - b) ** 2)), 1e-9)))


def opened(path: Path, part: str = "denoiser") -> OrtSession:
    """A session that outlives its bundle's handle."""
    with Bundle.open(path) as found:
        session = open_session(found, SessionOptions("ort-cpu", threads=1), part=part)
    assert isinstance(session, OrtSession)
    return session


def denoiser_inputs(path: Path) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    with Bundle.open(path) as found:
        shapes = {v.name: (v.shape, v.dtype) for v in found.graph("denoiser").inputs}
    sized = {name: [5 if n == "M" else n for n in shape] for name, (shape, _) in shapes.items()}
    return {
        name: np.ones(sized[name], np.int32)
        if dtype == "int32"
        else rng.standard_normal(sized[name]).astype(np.float32)
        for name, (_, dtype) in shapes.items()
    }


# --- what is drawn --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROMPT)
@pytest.mark.parametrize("cache", ["none", "fixed", "seacache"])
def test_pictures_are_those_of_the_cpu(kind: str, cache: str, made: dict[str, Path]) -> None:
    asked = {"steps": 10, "cache": cache}
    want, latent = drawn(made[kind], "cpu", PROMPT[kind], **asked)
    found, rows = drawn(made[kind], "ort-cpu", PROMPT[kind], **asked)
    assert_close(f"{kind} {cache}", latent, rows, rms=1e-4)
    assert psnr(want, found) >= 40


@pytest.mark.parametrize("options", [{"precision": "f16"}, {"standard": True}])
def test_pieces_of_other_emissions_compose(options: dict[str, Any], bundle: Path) -> None:
    variant = Variant(half="precision" in options, standard="standard" in options)
    whole = opened(bundle)
    inputs = denoiser_inputs(bundle)
    want = whole.run(inputs)["out"]
    whole.close()
    files = {path.name for path in export(bundle, **options)}
    assert {Emission("denoiser", variant, piece).name for piece in PIECES} <= files
    with Bundle.open(bundle) as found:
        paths: dict[str, list[Path]] = {}
        for emission in listed(found, "denoiser"):
            if emission.variant == variant:
                paths.setdefault(emission.piece, []).append(found.path_of(emission.name))
        session = OrtSession(
            found.graph("denoiser"), found.weights("denoiser"), paths[""][0],
            variant=variant, files=paths, threads=1,
        )  # fmt: skip
    held = dict(inputs)
    for graph in (v for k, v in network.cuts(session.graph).items() if k != "feature"):
        given = {value.name: held[value.name] for value in graph.inputs}
        held |= session.run_held(given, graph)
    assert isinstance(held["out"], Held)
    limit = 1e-2 if variant.half else 1e-5
    assert_close("pieces", want, np.asarray(held["out"]), rms=limit)
    assert_close("whole", want, session.run(inputs)["out"], rms=limit)
    session.close()


def test_half_pictures_have_half_denoisers_alone(bundle: Path) -> None:
    """T5 and autoencoders overflow in float16."""
    for path in bundle.glob("*.onnx"):
        path.unlink()
    manifest = json.loads((bundle / "manifest.json").read_text())
    files = {k: v for k, v in manifest["files"].items() if not k.endswith(".onnx")}
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    names = {path.name for path in export(bundle, precision="f16")}
    assert {"denoiser.f16.onnx", "denoiser.body.f16.onnx", "text_encoder.onnx"} < names
    assert {"decoder.onnx", "encoder.onnx"} < names
    _, want = drawn(bundle, "cpu", "a cat", steps=8, cache="none")
    _, found = drawn(bundle, "ort-cpu", "a cat", steps=8, cache="none")
    assert_close("half", want, found, rms=1e-2)
    assert run(["verify", str(bundle), "--device", "ort-cpu"]) == 0


def test_timesteps_keep_their_digits_in_half_precision(bundle: Path) -> None:
    export(bundle, precision="f16")
    with Bundle.open(bundle) as found:
        graph = network.cuts(found.graph("denoiser"))["embed"]
    model = onnx.load(bundle / "denoiser.embed.f16.onnx", load_external_data=False)
    assert {i.type.tensor_type.elem_type for i in model.graph.input} == {onnx.TensorProto.FLOAT}
    (wave,) = (
        node for node in model.graph.node if "timestep" in node.input and node.op_type == "Mul"
    )
    assert [v.name for v in graph.inputs][1] == wave.input[0] == "timestep"


def test_rows_between_pieces_stay_where_they_are(made: dict[str, Path]) -> None:
    session, inputs = opened(made["dit"]), denoiser_inputs(made["dit"])
    graph = network.cuts(session.graph)["embed"]
    given = {value.name: inputs[value.name] for value in graph.inputs}
    host, held = session.run(given, graph), session.run_held(given, graph)
    for name, rows in host.items():
        assert isinstance(held[name], Held)
        assert held[name].shape == rows.shape
        assert np.array_equal(np.asarray(held[name]), rows)
    session.close()


def test_another_size_has_its_own_files(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {"steps": 8, "cache": "none", "width": SIZE[0], "height": SIZE[1]}
    with edgert.load(bundle, device="ort-cpu", kind="image") as model:
        assert model("a cat", seed=1, steps=8)[0].size == (64, 64)
        with pytest.raises(DeviceError, match="of other graphs or sizes") as error:
            model("a cat", seed=1, **asked)
        assert f"edgert export {bundle}" in error.value.hint
        monkeypatch.setattr(model, "captions", None)  # nothing is computed for it
        with pytest.raises(DeviceError):
            model("a cat", seed=1, **asked)
        assert "--size" in error.value.hint
    names = {path.name for path in export(bundle, size=SIZE)}
    assert "denoiser.body.128x64.onnx" in names
    assert "text_encoder.onnx" in names  # which knows no size
    want, latent = drawn(bundle, "cpu", "a cat", **asked)
    found, rows = drawn(bundle, "ort-cpu", "a cat", **asked)
    assert_close("wide", latent, rows, rms=1e-4)
    assert psnr(want, found) >= 40
    with edgert.load(bundle, device="ort-cpu", kind="image") as model:
        small = [model("a cat", seed=1, steps=8, cache="none")[0] for _ in range(2)]
        model("a cat", seed=1, **asked)
        graphs = model.denoiser.graphs  # type: ignore[attr-defined]
        assert sorted(graphs._opened) == ["body", "embed", "head"]  # one a piece at a time
        small.append(model("a cat", seed=1, steps=8, cache="none")[0])
    assert all(np.array_equal(np.asarray(small[0]), np.asarray(image)) for image in small)


def test_the_own_size_needs_no_suffix(bundle: Path) -> None:
    assert "denoiser.body.onnx" in {path.name for path in export(bundle, size=(64, 64))}


# --- devices --------------------------------------------------------------------------------------


def test_auto_takes_cuda_where_it_is(
    made: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bundle.open(made["pixart"]) as found:
        parts = list(found.manifest.parts)
        assert {auto_device(found, part) for part in parts} == {"cpu"}
        monkeypatch.setattr(providers, "is_available", lambda provider: True)
        assert {auto_device(found, part) for part in parts} == {"cuda"}
        with pytest.raises(DeviceError, match="captures steps of tokens"):
            open_session(found, SessionOptions("cuda:graph"), part="denoiser")
    monkeypatch.undo()
    with edgert.load(made["dit"], device="auto", kind="image") as model:
        assert model.denoiser.device == "cpu"


def test_placement_covers_all_parts_and_pieces(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["inspect", str(bundle), "--device", "ort-cpu", "--json"]) == 0
    few = json.loads(capsys.readouterr().out)["placement"]
    assert {node["provider"] for node in few} == {"CPUExecutionProvider"}
    with Bundle.open(bundle) as found:
        graphs = [g for part in found.manifest.parts for g in emissions.placed_graphs(found, part)]
    attention = [n for g in graphs for n in g.nodes if n.op == "dot_attention"]
    assert sum(node["op"] == "MultiHeadAttention" for node in few) == len(attention)
    assert run(["export", str(bundle), "--size", "128x64", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["files"]) == 8
    assert run(["inspect", str(bundle), "--device", "ort-cpu", "--json"]) == 0
    many = json.loads(capsys.readouterr().out)["placement"]
    text = sum(node["op"] == "CumSum" for node in few)
    assert text == sum(node["op"] == "CumSum" for node in many)  # T5 has one size
    assert len(many) > 1.5 * len(few)


def test_the_command_draws_on_a_provider(
    made: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["image", str(made["dit"]), "-p", "dog", "-o", str(tmp_path / "a.png"), "--json"]
    assert run([*line, "--steps", "8", "-s", "1", "--device", "ort-cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["device"] == "ort-cpu"


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--size", "64"], "expected width and height"),
        (["--size", "0x64"], "expected width and height"),
        (["--size", "60x64"], "multiples of 8"),
        (["--size", "72x64"], "does not fit"),
        (["--standard", "--rows", "4", "--capacity", "8"], "no fixed rows"),
        (["--embeddings"], "takes embeddings"),
    ],
)
def test_options_that_do_not_fit_pictures(
    flags: list[str], message: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in bundle.iterdir())
    assert run(["export", str(bundle), *flags]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_text_has_no_size(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="expected one that draws"):
        export(tiny_bundle(tmp_path / "tiny.edge"), size=SIZE)


def exchange(name: str, source: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        shutil.copy(path / source, path / name)

    return change


def lie(path: Path) -> None:
    """The head's file says that it is the body's."""
    body = onnx.load(path / "denoiser.body.onnx", load_external_data=False)
    head = onnx.load(path / "denoiser.head.onnx", load_external_data=False)
    helper.set_model_props(head, {p.key: p.value for p in body.metadata_props})
    (path / "denoiser.body.onnx").write_bytes(head.SerializeToString())


def unlist(path: Path) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["files"]["denoiser.body.onnx"]
    (path / "manifest.json").write_text(json.dumps(manifest))


def relisted(path: Path) -> None:
    """The manifest of a stranger who made the files himself."""
    manifest = json.loads((path / "manifest.json").read_text())
    for name in [name for name in manifest["files"] if name.endswith(".onnx")]:
        data = (path / name).read_bytes()
        manifest["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    (path / "manifest.json").write_text(json.dumps(manifest))


HOSTILE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "a piece for another": (
        exchange("denoiser.body.onnx", "denoiser.head.onnx"), "device-graph", "denoiser.body.onnx",
    ),
    "another size for its own": (
        exchange("denoiser.body.onnx", "denoiser.body.128x64.onnx"), "device-graph",
        "'denoiser.body'",
    ),
    "the whole for a piece": (
        exchange("denoiser.body.onnx", "denoiser.onnx"), "device-graph", "of other graphs or sizes",
    ),
    "a piece that lies": (lie, "onnx-interface", "body.x"),
    "a file that is not listed": (unlist, "device-graph", "none of it"),
    "no onnx at all": (
        lambda path: (path / "denoiser.body.onnx").write_bytes(b"picture") and None, "onnx-format",
        "denoiser.body.onnx",
    ),
    "another part's": (
        exchange("decoder.onnx", "encoder.onnx"), "device-graph", "'decoder'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_files_of_strangers_are_refused(case: str, bundle: Path) -> None:
    change, code, message = HOSTILE[case]
    if "size" in case:
        export(bundle, size=SIZE)
    change(bundle)
    if "not listed" in case:
        (bundle / "denoiser.body.onnx").rename(bundle / "denoiser.body.old")
    relisted(bundle)
    if "size" in case:
        (bundle / "denoiser.body.128x64.onnx").unlink()
        manifest = json.loads((bundle / "manifest.json").read_text())
        del manifest["files"]["denoiser.body.128x64.onnx"]
        (bundle / "manifest.json").write_text(json.dumps(manifest))
    with edgert.load(bundle, device="ort-cpu", kind="image") as model:
        with pytest.raises((BundleError, DeviceError)) as error:
            model("a cat", seed=1, steps=8, cache="none")
    assert error.value.code == code
    assert message in error.value.message


def test_a_listed_file_that_is_gone_is_named(bundle: Path) -> None:
    (bundle / "denoiser.head.onnx").unlink()
    with pytest.raises(BundleError, match=r"denoiser\.head\.onnx"):
        edgert.load(bundle, device="ort-cpu", kind="image")


def test_a_bundle_without_files_names_the_command(bundle: Path) -> None:
    for path in bundle.glob("*.onnx"):
        path.unlink()
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = {k: v for k, v in manifest["files"].items() if not k.endswith(".onnx")}
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="no ONNX model") as error:
        ImageModel.from_bundle(Bundle.open(bundle), SessionOptions("ort-cpu"))
    assert "edgert export" in error.value.hint


def test_names_say_what_they_are() -> None:
    for piece in ("", *PIECES):
        for variant in (
            Variant(), Variant(half=True, standard=True), Variant(embeddings=True),
            Variant(half=True, batch=True, fused=True),
        ):  # fmt: skip
            for size in (None, SIZE):
                one = Emission("unet.1", variant, piece, size)
                assert Emission.of_file("unet.1", one.name) == one
    for name in ("denoiser.tail.onnx", "denoiser.0x8.onnx", "denoiser.onnx.bak", "decoder.onnx"):
        assert Emission.of_file("denoiser", name) is None


@pytest.mark.parametrize("cache", ["teacache", "easycache", "seacache", "fixed", "taylor"])
def test_a_batch_on_a_device_is_its_pictures_alone(cache: str, made: dict[str, Path]) -> None:
    with edgert.load(made["pixart"], device="ort-cpu", kind="image", threads=1) as model:
        options: dict[str, Any] = {"steps": 12, "cache": cache}
        batch = model("a cat", seed=3, batch=3, **options)
        for picture, seed in zip(batch, batch.seeds, strict=True):
            alone = model("a cat", seed=seed, **options)[0]
            assert np.array_equal(np.asarray(picture), np.asarray(alone)), seed
