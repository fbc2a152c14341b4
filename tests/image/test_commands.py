"""What the commands for pictures say before they work, and of what they do not look at."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.converters.convert import convert

import edgert
from edgert import notices
from edgert.cli import run
from edgert.demo import demo_bundle, image_bundle
from tests.image import pipelines

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    pipelines.write_dit(folder / "a")
    convert(folder / "a", folder / "dit.edge", quant="f32", progress=False)
    return folder / "dit.edge"


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    pipelines.write_pixart(folder / "a")
    convert(folder / "a", folder / "pixart.edge", quant="f32", progress=False)
    return folder / "pixart.edge"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy", "unheard"], "the cache policy is 'unheard'"),
        (["--policy", "fora"], "expected one with a threshold"),
        (["--prompts", "empty.txt"], "empty.txt is empty, expected a prompt a line"),
        (["--pictures", "empty"], "empty is empty, expected pictures"),
    ],
)
def test_calibration_says_what_is_wrong_before_it_measures(
    flags: list[str], message: str, dit: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    shutil.copytree(dit, tmp_path / "x.edge")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "empty").mkdir()
    assert run(["calibrate", "x.edge", "--steps", "8", *flags]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "measuring" not in said
    assert not (tmp_path / "x.edge" / "calibration.npz").exists()


@pytest.mark.parametrize("cache", ["sencache", "easycache", "seacache", "fora"])
def test_a_picture_of_a_batch_is_that_of_its_seed_alone(cache: str) -> None:
    options: dict[str, Any] = {"steps": 10, "width": 64, "height": 64, "cache": cache}
    with edgert.load(image_bundle(), kind="image") as model:
        batch = model("a rocket", seed=5, batch=4, **options)
        for picture, seed in zip(batch, batch.seeds, strict=True):
            alone = model("a rocket", seed=seed, **options)[0]
            assert np.array_equal(np.asarray(picture), np.asarray(alone)), seed


def test_every_picture_of_a_batch_has_a_place_before_one_is_drawn(
    dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a-2.png").mkdir()
    line = ["image", str(dit), "-p", "dog", "--steps", "2", "-o", str(tmp_path / "a.png")]
    assert run([*line, "--batch", "2"]) == 2
    assert "a-2.png" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a-2.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_with_a_name_is_not_replaced_by_a_picture(
    dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert run(["image", str(dit), "-p", "dog", "-o", str(tmp_path / "a.png")]) == 2
    assert "expected a file" in capsys.readouterr().err
    assert (tmp_path / "a.png").is_fifo()


def test_flags_that_do_nothing_are_named(
    dit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(notices, "_shown", set())
    line = ["image", str(dit), "-p", "dog", "--steps", "2", "-o", str(tmp_path / "a.png")]
    with caplog.at_level(logging.WARNING):
        assert run([*line, "--cache", "none", "--nfe", "1", "--strength", "0.5"]) == 0
    said = capsys.readouterr().err + caplog.text
    assert "--nfe 1 is not looked at" in said
    assert "--strength 0.5 is not looked at" in said


def test_a_notice_of_a_long_prompt_is_short(
    pixart: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(notices, "_shown", set())
    line = ["image", str(pixart), "-p", "a" * 5000, "--steps", "1", "-o", str(tmp_path / "a.png")]
    with caplog.at_level(logging.WARNING):
        assert run(line) == 0
    said = capsys.readouterr().err + caplog.text
    assert "left out" in said
    assert len(said) < 1500


def test_verbs_for_other_kinds_name_the_right_one(
    dit: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["bench", str(dit)]) == 2
    assert "this model draws: `edgert image`" in capsys.readouterr().err
    assert run(["calibrate", str(demo_bundle())]) == 2
    assert "is of kind 'text', expected 'image'" in capsys.readouterr().err


def test_a_caption_in_place_of_a_bundle_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["image", "a cat"]) == 2
    assert "behind -p" in capsys.readouterr().err
