"""Bundles of pictures that lie about themselves are refused when they are opened."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgert.converters.convert import convert

import edgert
from edgert.bundle import Bundle
from edgert.bundle.manifest import MANIFEST_NAME, Manifest
from edgert.errors import BundleError
from tests.image import pipelines

pytest.importorskip("diffusers")
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    pipelines.write_dit(folder / "a")
    pipelines.write_pixart(folder / "b")
    for name, kind in (("a", "dit"), ("b", "pixart")):
        convert(folder / name, folder / f"{kind}.edge", quant="f32", progress=False)
    return {kind: folder / f"{kind}.edge" for kind in ("dit", "pixart")}


def latents(**changes: Any) -> Change:
    return lambda image: image["latents"].update(changes)


def caption(**changes: Any) -> Change:
    return lambda image: image["captions"]["text_encoder"].update(changes)


CASES: dict[str, tuple[str, Change, str]] = {
    "unknown field": ("dit", lambda image: image.update(style="oil"), "style"),
    "unknown way": ("dit", lambda image: image.update(conditioning="poems"), "'poems'"),
    "another way": ("dit", lambda image: image.update(conditioning="captions"), "asks 'labels'"),
    "class past the table": ("dit", lambda image: image["labels"].update(x=11), "class 11"),
    "negative class": ("dit", lambda image: image["labels"].update(x=-1), "class -1"),
    "null class past the table": ("dit", lambda image: image.update(null_label=11), "class 11"),
    "channels": ("dit", latents(channels=3), "latents of 3 channels"),
    "no channels": ("dit", latents(channels=0), "expected sizes"),
    "no scaling": ("dit", latents(scaling=0.0), "scaling above 0"),
    "scaling below 0": ("dit", latents(scaling=-1.0), "scaling above 0"),
    "scaling that makes infinity": ("dit", latents(scaling=1e-45), "from 1e-06 on"),
    "endless scaling": ("dit", latents(scaling=1e300), "numbers up to 1e\\+06"),
    "endless shift": ("dit", latents(shift=-1e39), "numbers up to 1e\\+06"),
    "endless white": ("dit", latents(high=1e300), "numbers up to 1e\\+06"),
    "white a hair above black": ("dit", latents(low=0.0, high=1e-320), "from 1e-06 on"),
    "no steps": ("dit", lambda image: image["defaults"].update(steps=0), "steps is 0"),
    "half a step": ("dit", lambda image: image["defaults"].update(steps=2.5), "steps is 2.5"),
    "endless guidance": ("dit", lambda image: image["defaults"].update(guidance=1e30), "to 1000"),
    "black is white": ("dit", latents(low=1.0, high=1.0), "low < high"),
    "downscale": ("dit", latents(downscale=16), "takes 64 latents"),
    "height": ("dit", lambda image: image["defaults"].update(height=72), "takes 64 latents"),
    "no width": ("dit", lambda image: image["defaults"].update(width=0), "expected 1 to 16384"),
    "endless width": ("dit", lambda image: image["defaults"].update(width=1 << 20), "1 to 16384"),
    "a list of numbers": (
        "dit", lambda image: image["scheduler"].update(betas=[1]), r"image\.scheduler",
    ),
    "tokenizer of no part": (
        "dit", lambda image: image.update(tokenizers={"x": "decoder.graph.json"}),
        "role 'text-encoder'",
    ),
    "no tokens": ("pixart", caption(max_tokens=0), "expected 2 to"),
    "negative id": ("pixart", caption(end_id=-1), "ids from 0 on"),
    "id past the table": ("pixart", caption(end_id=64), "id 64, the part has 64 rows"),
    "padding past the table": ("pixart", caption(pad_id=99), "id 99, the part has 64 rows"),
    "captions of no tokenizer": (
        "pixart", lambda image: image.update(tokenizers={}), "name other parts",
    ),
    "tokenizer not listed": (
        "pixart", lambda image: image.update(tokenizers={"text_encoder": "x.json"}), "x.json",
    ),
    "tokenizer outside": (
        "pixart", lambda image: image.update(tokenizers={"text_encoder": "../x"}), r"\.\./x",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_picture_section_that_lies_is_refused(
    case: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    which, change, message = CASES[case]
    shutil.copytree(bundles[which], tmp_path / "x.edge")
    path = tmp_path / "x.edge" / MANIFEST_NAME
    manifest = msgspec.json.decode(path.read_bytes())
    change(manifest["image"])
    path.write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "x.edge")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "Unheard"}, "the scheduler is 'Unheard'"),
        ({"unheard": 1}, "unknown key 'unheard'"),
        ({"num_train_timesteps": 1 << 40}, "num_train_timesteps is '1099511627776'"),
        ({"num_train_timesteps": 3}, "expected from 1 to 3"),
    ],
)
def test_a_schedule_that_cannot_be_sampled_is_refused_when_the_model_is_loaded(
    changes: dict[str, Any], message: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(bundles["dit"], tmp_path / "x.edge")
    path = tmp_path / "x.edge" / MANIFEST_NAME
    manifest = msgspec.json.decode(path.read_bytes())
    manifest["image"]["scheduler"].update(changes)
    path.write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BundleError, match=message):
        edgert.load(tmp_path / "x.edge", kind="image").close()


def test_a_picture_section_belongs_to_pictures(bundles: dict[str, Path]) -> None:
    manifest = msgspec.json.decode((bundles["dit"] / MANIFEST_NAME).read_bytes())
    manifest["kind"] = "reward"
    manifest["parts"]["denoiser"]["role"] = "reward"
    with pytest.raises(BundleError, match="a section `image` in a bundle of kind 'reward'"):
        Manifest.from_json(msgspec.json.encode(manifest))


def test_a_manifest_of_pictures_survives_writing(bundles: dict[str, Path]) -> None:
    for path in bundles.values():
        data = (path / MANIFEST_NAME).read_bytes()
        manifest = Manifest.from_json(data)
        assert manifest.to_json() == data
        assert manifest.text is None
