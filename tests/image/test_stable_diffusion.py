"""Pipelines of Stable Diffusion: bundles that draw as diffusers' own pipelines do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from edgert.converters.sources.pipelines import weights_files
from PIL import Image

import edgert
from edgert.bundle import Bundle
from edgert.bundle.image_spec import CaptionSpec, ImageSpec
from edgert.cli import run
from edgert.errors import ConvertError, RequestError
from edgert.image import caching
from edgert.image.guidance import scale_row
from edgert.image.model import ImageModel
from edgert.image.policies import NoCache
from edgert.image.schedules import Run
from tests.closeness import assert_close
from tests.image import models, pipelines

pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

SD: dict[str, Any] = {
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
}  # fmt: skip
DDIM = {**SD, "set_alpha_to_one": False, "clip_sample": False}
PNDM = {**SD, "skip_prk_steps": True, "set_alpha_to_one": False}
KL = ("AutoencoderKL", pipelines.KL_VAE)
LCM = "LatentConsistencyModelPipeline"


@dataclass(frozen=True)
class Case:
    """A pipeline: its UNet, scheduler, and the defaults that its bundle should have."""

    unet: str
    scheduler: tuple[str, dict[str, Any]]
    defaults: tuple[int, float]
    options: dict[str, Any]


CASES = {
    "ddim": Case("sd1", ("DDIMScheduler", DDIM), (20, 7.5), {"vae": KL}),
    "velocity": Case(
        "sd2", ("DDIMScheduler", {**DDIM, "prediction_type": "v_prediction"}), (20, 7.5), {}
    ),
    "turbo": Case(
        "sd2", ("EulerDiscreteScheduler", {**SD, "timestep_spacing": "trailing"}), (1, 1.0), {}
    ),
    "lcm": Case("lcm", ("LCMScheduler", SD), (4, 8.5), {"kind": LCM}),
    "lcm-merged": Case("sd1", ("LCMScheduler", SD), (4, 1.0), {}),
    "pndm": Case("wide", ("PNDMScheduler", PNDM), (20, 7.5), {}),
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """diffusers' pipeline, where it stands, its bundle, and that, opened."""

    pipe: Any
    source: Path
    bundle: Path
    model: ImageModel


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import diffusers

    folder, found = tmp_path_factory.mktemp("sd"), dict[str, Made]()

    def make(name: str) -> Made:
        if name not in found:
            case, source = CASES[name], folder / name
            kind, settings = case.scheduler
            scheduler = getattr(diffusers, kind)(**settings)
            pipe = pipelines.write_sd(source, case.unet, scheduler, **case.options)
            bundle = folder / f"{name}.edge"
            convert(source, bundle, quant="f32", progress=False)
            found[name] = Made(pipe, source, bundle, edgert.load(bundle, threads=1, kind="image"))
        return found[name]

    yield make
    for one in found.values():
        one.model.close()


Make = Callable[[str], Made]


def spec_of(path: Path) -> ImageSpec:
    with Bundle.open(path) as bundle:
        assert bundle.manifest.image is not None
        return bundle.manifest.image


def by_diffusers(
    pipe: Any, run: Run, prompt: str, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> np.ndarray:
    """The last latent [C, H, W] of diffusers' pipeline, with random numbers of `run`."""
    import torch

    module = __import__(type(pipe.scheduler).__module__, fromlist=["randn_tensor"])
    draw = lambda shape, *a, **b: torch.from_numpy(run.noise(tuple(shape)))
    monkeypatch.setattr(module, "randn_tensor", draw, raising=False)
    noise = torch.from_numpy(run.noise((1, 4, 8, 8)))
    found = pipe(prompt, latents=noise, output_type="latent", **options).images
    return np.asarray(found[0])


@pytest.mark.parametrize(
    ("name", "steps", "scale"),
    [
        ("ddim", 12, None), ("ddim", 5, 1.0), ("velocity", 10, None), ("turbo", 1, None),
        ("turbo", 1, 0.0), ("turbo", 4, None), ("turbo", 3, 2.0), ("lcm", 4, None),
        ("lcm", 3, 1.0), ("lcm-merged", 4, None),
    ],
)  # fmt: skip
def test_a_whole_drawing_is_that_of_diffusers(
    name: str, steps: int, scale: float | None, made: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, seen = made(name), list[np.ndarray]()
    real = one.model.decode
    monkeypatch.setattr(one.model, "decode", lambda latent: seen.append(latent) or real(latent))
    asked = {"negative_prompt": "dog"} if name == "ddim" else {}
    (picture,) = one.model(
        "a cat, or two", seed=3, steps=steps, cfg_scale=scale, cache="none", **asked
    )
    options = {**asked, "num_inference_steps": steps}
    options["guidance_scale"] = CASES[name].defaults[1] if scale is None else scale
    want = by_diffusers(one.pipe, Run([3]), "a cat, or two", monkeypatch, **options)
    assert_close(name, want, seen[0], rms=1e-3)
    assert picture.size == (64, 64)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_pipeline_becomes_a_bundle_with_its_defaults(name: str, made: Make) -> None:
    spec, (steps, guidance) = spec_of(made(name).bundle), CASES[name].defaults
    assert spec.defaults == {"steps": steps, "guidance": guidance, "width": 64, "height": 64}
    assert spec.captions == {"text_encoder": CaptionSpec(77, 63, 62, 63)}
    assert spec.conditioning == "captions"


def test_pndm_is_drawn_by_ddim_over_the_same_noise(
    made: Make, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' pipeline with the same exchange draws the same."""
    import diffusers

    one = made("pndm")
    monkeypatch.setattr("edgert.notices._shown", set())
    convert(one.source, tmp_path / "x.edge", quant="f32", progress=False)
    assert "samples by PNDMScheduler, which edgert lacks" in caplog.text
    assert spec_of(tmp_path / "x.edge").scheduler == {
        **DDIM, "_class_name": "DDIMScheduler", "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "timestep_spacing": "leading",
    }  # fmt: skip
    seen = list[np.ndarray]()
    real = one.model.decode
    monkeypatch.setattr(one.model, "decode", lambda latent: seen.append(latent) or real(latent))
    one.model("cat", seed=4, steps=8, cache="none")
    ddim = diffusers.DDIMScheduler.from_config(one.pipe.scheduler.config, clip_sample=False)
    monkeypatch.setattr(one.pipe, "scheduler", ddim)
    want = by_diffusers(
        one.pipe, Run([4]), "cat", monkeypatch, num_inference_steps=8, guidance_scale=7.5
    )
    assert_close("pndm", want, seen[0], rms=1e-3)


@pytest.mark.parametrize(
    ("kind", "settings", "stands"),
    [
        ("UniPCMultistepScheduler", {"solver_type": "bh2"}, "DPMSolverMultistepScheduler"),
        ("DEISMultistepScheduler", {"algorithm_type": "deis"}, "DPMSolverMultistepScheduler"),
        ("EulerAncestralDiscreteScheduler", {}, "EulerDiscreteScheduler"),
        ("DDIMScheduler", {"clip_sample": False}, "DDIMScheduler"),
    ],
)
def test_samplers_that_edgert_lacks_have_a_substitute(
    kind: str, settings: dict[str, Any], stands: str, made: Make, tmp_path: Path
) -> None:
    source = with_scheduler(made("pndm").source, tmp_path, {"_class_name": kind, **SD, **settings})
    convert(source, tmp_path / "x.edge", quant="f16", progress=False)
    found = spec_of(tmp_path / "x.edge").scheduler
    assert found["_class_name"] == stands
    assert found["beta_schedule"] == "scaled_linear"
    assert found["steps_offset"] == 1


def with_scheduler(source: Path, folder: Path, settings: dict[str, Any]) -> Path:
    """A copy of a pipeline with another scheduler."""
    import shutil

    shutil.copytree(source, folder / "pipe")
    pipelines.write_json(folder / "pipe/scheduler/scheduler_config.json", settings)
    kind = ["diffusers", settings["_class_name"]]
    pipelines.edit_json(folder / "pipe/model_index.json", scheduler=kind)
    return folder / "pipe"


def test_oldest_files_are_mended_as_diffusers_does(
    made: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"_class_name": "DDIMScheduler", **SD, "steps_offset": 0, "clip_sample": True}
    source = with_scheduler(made("pndm").source, tmp_path, settings)
    pipelines.edit_json(source / "unet/config.json", sample_size=32, _diffusers_version="0.6.0")
    convert(source, tmp_path / "x.edge", quant="f16", progress=False)
    spec = spec_of(tmp_path / "x.edge")
    assert (spec.scheduler["steps_offset"], spec.scheduler["clip_sample"]) == (1, False)
    assert (spec.defaults["width"], spec.defaults["height"]) == (512, 512)
    assert "scheduler_config.json says steps_offset 0, taken is 1" in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"_class_name": "TCDScheduler"}, "the scheduler is 'TCDScheduler', expected one of"),
        ({"_class_name": "DDIMScheduler", "beta_start": -1}, "beta_start is '-1'"),
        ({"_class_name": "DDIMScheduler", "eta_own": 1}, "unknown key 'eta_own'"),
        ({"_class_name": "PNDMScheduler", "beta_schedule": "own"}, "beta_schedule is 'own'"),
    ],
)
def test_schedules_that_nothing_follows_are_refused(
    settings: dict[str, Any], message: str, made: Make, tmp_path: Path
) -> None:
    source = with_scheduler(made("pndm").source, tmp_path, settings)
    with pytest.raises(ConvertError, match=message):
        convert(source, tmp_path / "x.edge", progress=False)
    assert not (tmp_path / "x.edge").exists()


def test_a_guidance_scale_is_a_row_of_one_branch(made: Make) -> None:
    model = made("lcm").model
    low, high = (model("cat", seed=1, cfg_scale=scale)[0] for scale in (2.0, 12.0))
    assert not np.array_equal(np.asarray(low), np.asarray(high))
    pipe = made("lcm").pipe
    import torch

    for width in (12, 256, 7):
        want = pipe.get_guidance_scale_embedding(torch.tensor([7.5]), embedding_dim=width)
        # 7500 radians in float32 are exact to 5e-4
        np.testing.assert_allclose(scale_row(8.5, width), want.numpy(), atol=1e-3)
    with pytest.raises(RequestError, match="guidance scale is 2000"):
        model("cat", cfg_scale=2000.0)


def test_few_steps_are_not_cached_and_nothing_is_said(
    made: Make, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(caching.plan("auto", None, 7, None).policy, NoCache)
    assert not isinstance(caching.plan("auto", None, 8, None).policy, NoCache)
    caplog.clear()
    found = made("turbo").model("cat", seed=1)
    assert found.settings["cache"] == "none"
    assert found.settings["steps"] == found.evaluations == 1
    assert not caplog.text


def test_weights_of_a_unet_are_found_among_others() -> None:
    stem = "diffusion_pytorch_model"
    names = [f"{stem}.bin", f"{stem}.non_ema.safetensors", f"{stem}.fp16.safetensors"]
    assert weights_files("unet", names) == (names[-1], "")
    assert weights_files("unet", [*names, f"{stem}.safetensors"]) == (f"{stem}.safetensors", "")


def test_outputs_are_used_again_where_steps_are_many(made: Make) -> None:
    found = made("ddim").model("cat", seed=1, steps=12, cache="fixed", nfe=6)
    assert found.evaluations == 6


def test_other_sizes_and_pictures_to_start_from(made: Make) -> None:
    model = made("ddim").model
    wide = model("cat", seed=1, steps=3, cache="none", width=96, height=32)[0]
    assert wide.size == (96, 32)
    with pytest.raises(RequestError, match="does not fit this model"):
        model("cat", steps=3, width=72)
    first = Image.new("RGB", (64, 64), "red")
    again = model("cat", seed=1, steps=4, cache="none", init=first, strength=0.5)[0]
    assert again.size == (64, 64)


def test_the_commands_convert_and_draw(
    made: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, out = tmp_path / "x.edge", tmp_path / "x.png"
    line = ["convert", str(made("pndm").source), "-o", str(bundle), "--quant", "int4"]
    assert run(line) == 0
    line = ["image", str(bundle), "-p", "a cat", "-o", str(out), "-s", "1", "--steps", "4"]
    assert run([*line, "--cache", "none"]) == 0
    with Image.open(out) as picture:
        assert picture.size == (64, 64)
    assert run(["inspect", str(bundle)]) == 0
    assert "image, 64 x 64" in capsys.readouterr().out


@pytest.mark.parametrize("quant", ["int8", "int4"])
def test_products_and_convolutions_get_codes(quant: str, made: Make, tmp_path: Path) -> None:
    bundle = tmp_path / "x.edge"
    convert(made("pndm").source, bundle, quant=quant, progress=False)
    with Bundle.open(bundle) as held:
        graph, weights = held.graph("denoiser"), held.weights("denoiser")
        codes = {name: weight.encoding for name, weight in graph.weights.items()}
        assert codes["mid_block.resnets.0.conv1"] == f"{quant}-g32"
        assert codes["mid_block.resnets.0.time"] == "int8-g32"
        products = {"int8": "int8-channel", "int4": "int4-g32"}[quant]
        assert codes["mid_block.attentions.0.transformer_blocks.0.ff.up"] == products
        assert codes["conv_in"] == codes["conv_out"] == "f16"
        inputs = models.inputs_of("wide", (8, 8), captions=77)
        want, got = (models.run(device, graph, weights, inputs)["out"]
                     for device in ("reference", "cpu"))  # fmt: skip
    # inputs of products are rounded to int8, too
    assert_close(quant, want, got, rms=3e-2)
