"""Pictures of a batch and branches of guidance in one call through onnxruntime: as one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.onnx_emit import export

import edgert
from edgert import limits
from edgert.cli import run
from edgert.errors import BundleError, DeviceError
from edgert.image import joint
from edgert.image.denoiser import At
from edgert.session.ort import OrtSession
from edgert.session.ort_batch import BatchModel
from edgert.session.room import bytes_of_one
from tests.closeness import assert_close
from tests.image import pipelines
from tests.image.test_stable_diffusion import DDIM

pytest.importorskip("diffusers")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = {"dit": "dog", "pixart": "a cat", "sd": "a cat"}
CACHES = {"dit": ("none", "teacache"), "pixart": ("none", "fixed", "seacache"), "sd": ("none",)}


def write_sd(path: Path) -> None:
    import diffusers

    pipelines.write_sd(path, "sd1", diffusers.DDIMScheduler(**DDIM))


WRITERS = {"dit": pipelines.write_dit, "pixart": pipelines.write_pixart, "sd": write_sd}


@pytest.fixture(scope="session")
def batched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles in f32 with files that compute batches."""
    folder, found = tmp_path_factory.mktemp("batched"), {}
    for kind, write in WRITERS.items():
        write(folder / kind)
        found[kind] = folder / f"{kind}.edge"
        convert(folder / kind, found[kind], quant="f32", progress=False)
        export(found[kind], batch=True, fused=kind != "pixart")
    return found


def drawn(path: Path, device: str, prompt: str, **asked: Any) -> tuple[Any, list[np.ndarray]]:
    """Pictures, and the latents that they were decoded from."""
    with edgert.load(path, device=device, kind="image", threads=1) as model:
        seen, real = list[np.ndarray](), model._decoded
        model._decoded = lambda x, check: seen.append(x) or real(x, check)  # type: ignore
        return model(prompt, seed=3, **asked), seen[0]


@pytest.mark.parametrize(
    ("kind", "cache"), [(kind, cache) for kind, caches in CACHES.items() for cache in caches]
)
def test_a_batch_draws_what_the_cpu_draws(kind: str, cache: str, batched: dict[str, Path]) -> None:
    asked: dict[str, Any] = {"steps": 10, "cache": cache, "batch": 3}
    want, latents = drawn(batched[kind], "cpu", PROMPT[kind], **asked)
    found, rows = drawn(batched[kind], "ort-cpu", PROMPT[kind], **asked)
    assert found.evaluations == want.evaluations
    assert len(found) == 3
    assert_close(f"{kind} {cache}", latents, rows, rms=1e-4)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which graphs are computed, of how many pictures each."""
    seen, real = list[tuple[str, int]](), OrtSession.run_batch

    def counted(self: OrtSession, arrays: Any, graph: Any = None, **options: Any) -> Any:
        seen.append(((graph or self.graph).name, len(next(iter(arrays.values())))))
        return real(self, arrays, graph, **options)

    monkeypatch.setattr(OrtSession, "run_batch", counted)
    return seen


def test_pictures_and_branches_are_one_call(
    batched: dict[str, Path], calls: list[tuple[str, int]]
) -> None:
    asked: dict[str, Any] = {"steps": 8, "batch": 3}
    drawn(batched["pixart"], "ort-cpu", "a cat", cache="none", **asked)
    assert [call for call in calls if "encoder" not in call[0]] == [
        *[("denoiser", 6)] * 8, ("decoder", 3),
    ]  # fmt: skip
    calls.clear()
    found, _ = drawn(batched["pixart"], "ort-cpu", "a cat", cache="fixed", nfe=4, **asked)
    names = [name for name, count in calls if count == 6]
    assert names.count("denoiser.head") == names.count("denoiser.embed") == 8
    assert names.count("denoiser.body") == found.evaluations < 8


def test_branches_have_captions_of_their_own_lengths(batched: dict[str, Path]) -> None:
    with edgert.load(batched["pixart"], device="ort-cpu", kind="image", threads=1) as model:
        request = joint_request(model, "a cat that reads")
        network, guidance = model.network(request)
        lengths = {len(one["caption"]) for one in network.conditions.values()}
        assert len(lengths) == len(guidance.branches) == 2
        shape = (2, model.latents.channels, *request.grid)
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        run_all = network.denoiser().run
        both = run_all(
            np.concatenate([x, x]), At(0, 500.0, branches=("cond",) * 2 + ("uncond",) * 2)
        )
        for index, branch in enumerate(("cond", "cond", "uncond", "uncond")):
            alone = run_all(x[index % 2][None], At(0, 500.0, branch))
            assert_close(f"{branch} {index}", alone[0], both[index], rms=1e-5)


def joint_request(model: Any, prompt: str) -> Any:
    from edgert.image.request import resolve

    return resolve(model.spec, model.latents, prompt, {"steps": 8, "seed": 1})


@pytest.mark.parametrize("cache", ["none", "seacache"])
def test_what_does_not_fit_is_computed_in_parts(
    cache: str, batched: dict[str, Path], calls: list[tuple[str, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked: dict[str, Any] = {"steps": 8, "cache": cache, "batch": 3}
    want, latents = drawn(batched["pixart"], "ort-cpu", "a cat", **asked)
    with edgert.load(batched["pixart"], device="ort-cpu", kind="image") as model:
        need = bytes_of_one(model.denoiser.graph, {"M": 8})
    monkeypatch.setattr(limits, "BATCH_BYTES", 4 * need + need // 2)
    calls.clear()
    found, rows = drawn(batched["pixart"], "ort-cpu", "a cat", **asked)
    assert 3 in {count for name, count in calls if "denoiser" in name}
    assert 6 not in {count for _, count in calls}
    assert found.evaluations == want.evaluations
    assert_close(cache, latents, rows, rms=1e-5)


def test_a_device_without_memory_gets_half_of_it(
    batched: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {"steps": 10, "cache": "teacache", "batch": 3}
    _, latents = drawn(batched["dit"], "ort-cpu", "dog", **asked)
    real = OrtSession.run_batch

    def small(self: OrtSession, arrays: Any, graph: Any = None, **options: Any) -> Any:
        if len(next(iter(arrays.values()))) > 2:
            raise DeviceError("Failed to allocate memory", code="device-memory")
        return real(self, arrays, graph, **options)

    monkeypatch.setattr(OrtSession, "run_batch", small)
    _, rows = drawn(batched["dit"], "ort-cpu", "dog", **asked)
    assert_close("halves", latents, rows, rms=1e-5)


@pytest.mark.parametrize("cache", ["none", "seacache", "teacache"])
def test_kept_buffers_draw_the_same(
    cache: str, batched: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a captured run reads and writes stands where it stood: twice, with another caption."""
    asked: dict[str, Any] = {"steps": 10, "cache": cache, "batch": 2}
    prompts = ("a cat", "a much longer caption of another cat", "a cat")
    want = [drawn(batched["pixart"], "ort-cpu", prompt, **asked)[1] for prompt in prompts]
    real = BatchModel.__init__

    def capturing(self: BatchModel, *args: Any, **options: Any) -> None:
        real(self, *args, **options)
        self.captures = True

    monkeypatch.setattr(BatchModel, "__init__", capturing)
    with edgert.load(batched["pixart"], device="ort-cpu", kind="image", threads=1) as model:
        seen, decoded = list[np.ndarray](), model._decoded
        model._decoded = lambda x, check: seen.append(x) or decoded(x, check)  # type: ignore
        for prompt in prompts:
            model(prompt, seed=3, **asked)
        kept = model.denoiser.model._captures if cache == "none" else {}  # type: ignore
    assert all(len(buffers) == 1 for buffers in kept.values())
    for latent, found in zip(want, seen, strict=True):
        assert_close(cache, latent, found, rms=1e-5)


def test_spans_are_about_as_long() -> None:
    assert [s.stop - s.start for s in joint.spans(10, 4)] == [4, 4, 2]
    assert [s.stop - s.start for s in joint.spans(6, 100)] == [6]
    assert len(joint.spans(3, 0)) == 3


def test_text_draws_no_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.tiny import tiny_bundle

    path = tiny_bundle(tmp_path / "tiny.edge")
    for flag in ("--batch", "--fused"):
        assert run(["export", str(path), flag]) == 2
        assert "batches of pictures" in capsys.readouterr().err


def test_a_file_without_the_axis_is_refused(batched: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from tests.image.test_ort import relisted

    bundle = Path(shutil.copytree(batched["pixart"], tmp_path / "pixart.edge"))
    other = Path(shutil.copytree(batched["pixart"], tmp_path / "other.edge"))
    export(other)
    shutil.copy(other / "denoiser.onnx", bundle / "denoiser.batch.onnx")
    relisted(bundle)
    with edgert.load(bundle, device="ort-cpu", kind="image") as model:
        with pytest.raises(BundleError) as error:
            model("a cat", seed=1, steps=8, cache="none")
    assert error.value.code == "onnx-foreign"


def test_pieces_are_the_same_objects_again(batched: dict[str, Path]) -> None:
    """Sessions know graphs, and what they made for them, by identity."""
    with edgert.load(batched["dit"], device="cpu", kind="image", threads=1) as model:
        request = joint_request(model, "dog")
        first, again = (model.network(request, policy="teacache")[0].cuts for _ in range(2))
        assert first
        assert all(again[name] is graph for name, graph in first.items())
        assert "keep" in model.network(request, policy="fora")[0].cuts
        model("dog", seed=1, steps=2, cache="none")
        programs = dict(model.denoiser._programs)  # type: ignore[attr-defined]
        model("dog", seed=1, steps=2, cache="none")
        assert model.denoiser._programs == programs  # type: ignore[attr-defined]
