"""`edgert.load` of a bundle that draws: pictures as diffusers computes them, options, calibration,
the command line."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert
from PIL import Image

import edgert
from edgert.cli import run
from edgert.errors import BundleError, DeviceError, EdgertError, RequestError
from edgert.image import caching, calibration, pictures
from edgert.image.model import ImageModel, Step
from edgert.image.schedules import Run, start
from tests.closeness import assert_close
from tests.image import pipelines

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

KINDS = ("dit", "pixart")
PROMPT = {"dit": "dog", "pixart": "a cat"}


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Bundles in f32, and the modules they were made from."""
    folder, found = tmp_path_factory.mktemp("drawing"), {}
    for kind, write in (("dit", pipelines.write_dit), ("pixart", pipelines.write_pixart)):
        modules = write(folder / kind)
        convert(folder / kind, folder / f"{kind}.edge", quant="f32", progress=False)
        found[kind] = (folder / f"{kind}.edge", modules)
    return found


@pytest.fixture(scope="module")
def models(made: Any) -> Iterator[dict[str, ImageModel]]:
    found = {kind: edgert.load(path, threads=2, kind="image") for kind, (path, _) in made.items()}
    yield found
    for model in found.values():
        model.close()


@pytest.fixture
def model(models: dict[str, ImageModel]) -> ImageModel:
    return models["pixart"]


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


# --- what is computed -----------------------------------------------------------------------------


def by_diffusers(kind: str, modules: Any, model: ImageModel, x: np.ndarray, steps: int) -> Any:
    """The last latent [1, C, H, W] as diffusers' modules and scheduler compute it."""
    import diffusers
    import torch

    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="epsilon")
    scheduler.set_timesteps(steps)
    scale = float(model.spec.defaults["guidance"])
    latent = torch.from_numpy(x)
    with torch.no_grad():
        for t in scheduler.timesteps:
            both = torch.cat([latent, latent])
            if kind == "dit":
                labels = torch.tensor([1, modules.config.num_embeds_ada_norm])
                y = modules(both, timestep=t.expand(2), class_labels=labels).sample
            else:
                y = torch.cat([_pixart(modules, model, latent, t, text) for text in ("a cat", "")])
            y = y[:, : latent.shape[1]]
            guided = y[1:] + scale * (y[:1] - y[1:])
            latent = scheduler.step(guided, t, latent).prev_sample
    return latent.numpy()


def _pixart(modules: Any, model: ImageModel, latent: Any, t: Any, text: str) -> Any:
    import torch

    assert model.captions is not None
    ids = torch.tensor([model.captions.tokens(text)])
    rows = modules[1](ids).last_hidden_state
    sizes = {"resolution": None, "aspect_ratio": None}
    return modules[0](
        latent, encoder_hidden_states=rows, timestep=t.expand(1), added_cond_kwargs=sizes
    ).sample


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_drawing_is_that_of_diffusers(
    kind: str, made: Any, models: dict[str, ImageModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = models[kind], list[np.ndarray]()
    real = model.decode
    monkeypatch.setattr(model, "decode", lambda latent: seen.append(latent) or real(latent))
    model(PROMPT[kind], seed=3, steps=12, cache="none")
    x = start(model.sampler(calibration.request_of(model, PROMPT[kind], 3, 12)),
              (1, model.latents.channels, *model.made), Run([3]))  # fmt: skip
    want = by_diffusers(kind, made[kind][1], model, x, 12)
    assert_close(kind, want[0], seen[0], rms=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_draws_the_same_pixels(kind: str, models: dict[str, ImageModel]) -> None:
    model, prompt = models[kind], PROMPT[kind]
    pair = model(prompt, seed=5, steps=8, batch=2, cache="none")
    assert pair.seeds == (5, 6)
    for seed, image in zip(pair.seeds, pair, strict=True):
        alone = model(prompt, seed=seed, steps=8, cache="none")[0]
        assert np.array_equal(pixels(alone), pixels(image))
    assert not np.array_equal(pixels(pair[0]), pixels(pair[1]))


def test_the_reference_draws_the_same(made: Any, model: ImageModel) -> None:
    with edgert.load(made["pixart"][0], device="reference", kind="image") as slow:
        want = slow("a cat", seed=1, steps=8, cache="none")[0]
    found = model("a cat", seed=1, steps=8, cache="none")[0]
    assert np.abs(pixels(want) - pixels(found)).max() <= 1


@pytest.mark.parametrize(
    ("changed", "same"),
    [
        ({"prompt": "a on"}, False),
        ({"negative_prompt": "a cat"}, False),
        ({"cfg_scale": 1.0}, False),
        ({"sampler": "ddim"}, False),
        ({"steps": 9}, False),
        ({"sampler": "dpm++"}, True),
        ({"cache": "fixed", "nfe": 8}, True),
    ],
)
def test_what_changes_a_picture(changed: dict[str, Any], same: bool, model: ImageModel) -> None:
    asked: dict[str, Any] = {"prompt": "a cat", "seed": 1, "steps": 8, "cache": "none"}
    before, after = model(**asked)[0], model(**{**asked, **changed})[0]
    assert np.array_equal(pixels(before), pixels(after)) is same


def test_other_sizes_and_pictures_to_start_from(model: ImageModel) -> None:
    wide = model("a cat", seed=1, steps=8, width=128, height=64)[0]
    assert wide.size == (128, 64)
    seen = list[Step]()
    again = model("a cat", seed=1, steps=8, init=wide, strength=0.5, on_step=seen.append)
    assert again[0].size == (64, 64)
    assert [step.index for step in seen] == [0, 1, 2, 3]
    assert again.settings["strength"] == 0.5
    near, far = (
        pixels(model("a cat", seed=1, steps=10, init=wide, strength=s, cache="none")[0])
        for s in (0.1, 1.0)
    )
    assert not np.array_equal(near, far)


def test_labels_by_name_and_number(models: dict[str, ImageModel]) -> None:
    model = models["dit"]
    named, numbered = (model(p, seed=1, steps=8)[0] for p in ("Dog", "1"))
    assert np.array_equal(pixels(named), pixels(numbered))
    with pytest.raises(RequestError, match="knows none called 'dgo'") as error:
        model("dgo")
    assert "dog" in error.value.hint


@pytest.mark.parametrize("cache", ["fora", "first-block", "taylor", "easycache", "fixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_policy_without_a_calibration_draws(
    cache: str, kind: str, models: dict[str, ImageModel]
) -> None:
    made = models[kind](PROMPT[kind], seed=1, steps=16, cache=cache)
    assert made.settings["cache"] == cache
    assert 1 <= made.evaluations <= 16
    assert made.evaluations < 16 or cache in ("easycache", "first-block")


# --- what is refused ------------------------------------------------------------------------------

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no steps": ({"steps": 0}, "steps is 0"),
    "too many steps": ({"steps": 2000}, "steps is 2000"),
    "a size between latents": ({"width": 60}, "multiple of 8"),
    "a size between patches": ({"width": 72}, "does not"),
    "an enormous size": ({"height": 1 << 20}, "height is"),
    "nan": ({"cfg_scale": float("nan")}, "finite"),
    "text for a number": ({"steps": "20"}, "whole number"),
    "a seed below 0": ({"seed": -1}, "seed is -1"),
    "an empty batch": ({"batch": 0}, "batch is 0"),
    "more evaluations than steps": ({"steps": 10, "nfe": 11}, "nfe is 11"),
    "an unknown cache": ({"cache": "best"}, "cache policy is 'best'"),
    "an unknown sampler": ({"sampler": "heun"}, "sampler is 'heun'"),
    "a sampler of flows": ({"sampler": "flow-euler"}, "flow-euler"),
    "a policy without its table": ({"cache": "sencache"}, "calibration"),
    "a threshold that nobody knows": ({"cache": "teacache", "nfe": 5}, "threshold"),
    "no strength": ({"init": Image.new("RGB", (64, 64)), "strength": 0.0}, "strength"),
    "a name for a picture": ({"init": "apple.png"}, "init is 'apple.png', expected a picture"),
    "an unknown option": ({"guidance": 3}, "no option 'guidance'"),
    "a prompt that is no text": ({"prompt": 3}, "prompt is '3'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_options_are_named(case: str, model: ImageModel) -> None:
    options, message = WRONG[case]
    with pytest.raises(RequestError, match=message):
        model(**{"prompt": "a cat", **options})


def test_long_prompts_are_cut_with_a_notice(
    model: ImageModel, caplog: pytest.LogCaptureFixture
) -> None:
    assert model.captions is not None
    ids = model.captions.tokens("a cat " * 400)
    assert len(ids) == model.captions.spec.max_tokens
    assert ids[-1] == model.captions.spec.end_id
    assert "the model reads" in caplog.text


def test_special_tokens_in_prompts_stay_text(model: ImageModel) -> None:
    assert model.captions is not None
    end = model.captions.spec.end_id
    assert model.captions.tokens("a </s> cat").count(end) == 1


def test_values_that_are_no_numbers_are_errors(
    model: ImageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(session: Any) -> Any:
        real = session.run

        def call(*args: Any) -> Any:
            found = real(*args)
            name = next(iter(found))
            found[name][0, 0] = np.nan
            return found

        return call

    for session, where in ((model.denoiser, "step 1 of 8"), (model.decoder, "decoder")):
        with monkeypatch.context() as patched:
            patched.setattr(session, "run", broken(session))
            with pytest.raises(DeviceError, match=where):
                model("a cat", seed=1, steps=8, cache="none")


def test_a_drawing_is_stopped_within_a_step(model: ImageModel) -> None:
    seen = list[int]()

    def stop(step: Step) -> bool:
        seen.append(step.index)
        return step.index == 2

    with pytest.raises(RequestError) as error:
        model("a cat", seed=1, steps=8, on_step=stop)
    assert (error.value.code, seen) == ("cancelled", [0, 1, 2])

    def cancel(step: Step) -> None:
        seen.append(step.index)
        thread = threading.Thread(target=model.cancel)
        thread.start()
        thread.join()

    seen.clear()
    with pytest.raises(RequestError) as error:
        model("a cat", seed=1, steps=8, on_step=cancel)
    assert (error.value.code, seen) == ("cancelled", [0])
    assert model("a cat", seed=1, steps=8)  # the next one is not


def test_previews_show_the_picture_so_far(model: ImageModel) -> None:
    seen = list[Any]()
    made = model("a cat", seed=1, steps=8, on_step=lambda step: seen.append(step.preview()))
    assert len(seen) == 8
    assert seen[0].size == made[0].size
    assert np.array_equal(pixels(seen[-1]), pixels(made[0]))


def test_a_closed_model_draws_nothing(made: Any) -> None:
    model = edgert.load(made["dit"][0], kind="image")
    model.close()
    model.close()
    with pytest.raises(RequestError, match="closed"):
        model("dog")


def test_kinds_are_told_apart(made: Any) -> None:
    with pytest.raises(BundleError, match="kind 'image'") as error:
        edgert.load(made["dit"][0], kind="text")
    assert "edgert image" in error.value.hint


# --- caches ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def calibrated(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with its calibration, of two prompts at 10 steps."""
    import shutil

    path = tmp_path_factory.mktemp("calibrated") / "pixart.edge"
    shutil.copytree(made["pixart"][0], path)
    found = calibration.calibrate_bundle(path, prompts=["a cat", "on a"], steps=10)
    assert found.evaluations > 0
    return path


def test_a_calibration_chooses_the_steps(calibrated: Path) -> None:
    with edgert.load(calibrated, kind="image") as model:
        assert model.table is not None
        assert len(model.table.t) == 10
        auto = model("a cat", seed=1, steps=10)
        assert auto.settings["cache"] == "sencache"
        assert auto.evaluations < 10
        counts = [model("a cat", seed=1, steps=10, nfe=n).evaluations for n in (4, 6, 9)]
        assert counts == sorted(counts)
        assert counts[0] < counts[-1]
        assert model("a cat", seed=1, steps=10, cache="magcache").evaluations < 10


def test_a_calibration_belongs_to_its_model(calibrated: Path, made: Any, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "dit.edge"
    shutil.copytree(made["dit"][0], other)
    shutil.copy(calibrated / caching.FILE, other / caching.FILE)
    manifest = json.loads((other / "manifest.json").read_text())
    entry = json.loads((calibrated / "manifest.json").read_text())["files"][caching.FILE]
    manifest["files"][caching.FILE] = entry
    (other / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(EdgertError, match="cache table is of model"):
        edgert.load(other)


def test_a_calibrated_bundle_verifies(calibrated: Path) -> None:
    assert run(["verify", str(calibrated)]) == 0


# --- the command line -----------------------------------------------------------------------------


def test_the_command_draws_and_inspect_reads(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.png"
    line = ["image", str(made["pixart"][0]), "-p", "a cat", "-o", str(out), "-s", "7"]
    assert run([*line, "--steps", "8", "--preview"]) == 0
    assert "seed 7" in capsys.readouterr().out
    assert run(["inspect", str(out), "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert settings["prompt"] == "a cat"
    assert (settings["seed"], settings["steps"], settings["width"]) == (7, 8, 64)
    with edgert.load(made["pixart"][0], kind="image") as model:
        again = model("a cat", seed=7, steps=8)[0]
    assert np.array_equal(pixels(Image.open(out)), pixels(again))
    assert [path.name for path in tmp_path.iterdir()] == ["out.png"]


def test_the_command_draws_batches_as_json(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["image", str(made["dit"][0]), "-p", "dog", "-o", str(tmp_path / "a.png")]
    assert run([*line, "--steps", "8", "--batch", "2", "-s", "1", "--json", "--nfe", "4"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [Path(name).name for name in found["files"]] == ["a-1.png", "a-2.png"]
    assert found["seeds"] == [1, 2]
    assert found["evaluations"] == 4
    assert all(pictures.read_settings(Path(name)) for name in found["files"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "out.jpg"], "ends in .png"),
        (["-o", "none/out.png"], "folder to write to"),
        (["--steps", "0"], "0"),
        (["--init", "none.png"], "no such file"),
        (["--nfe", "99"], "nfe is 99"),
        (["--init", __file__], "unknown format"),
    ],
)
def test_the_command_says_what_is_wrong(
    flags: list[str], message: str, made: Any, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["image", str(made["pixart"][0]), "-p", "a cat", *flags]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_calibration_by_command(
    made: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    path = tmp_path / "x.edge"
    shutil.copytree(made["dit"][0], path)
    (tmp_path / "prompts.txt").write_text("dog\n\ncat, tabby\n")
    flags = ["--prompts", str(tmp_path / "prompts.txt"), "--steps", "8", "--json"]
    assert run(["calibrate", str(path), *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["info"]["samples"] == 4
    assert found["info"]["thresholds"]["sencache"]
    assert run(["verify", str(path)]) == 0
