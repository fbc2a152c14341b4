"""Healing as a stage of a conversion: what it reads and writes, resumed, refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from edgert.converters.calibrate import Calibration
from edgert.converters.heal import HealOptions
from edgert.converters.heal import train as training
from edgert.converters.pipeline import Options, Pipeline
from edgert.converters.recipes import Plan
from edgert.converters.stages import heal as stage
from edgert.converters.stages.base import Stage
from edgert.converters.stages.emit import Emit
from edgert.converters.stages.heal import Heal
from edgert.converters.stages.quantize import Quantize
from edgert.converters.stages.verify import Verify
from edgert.converters.stages.weight_cache import WeightCache

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from tests.converters.heal.models import divergence_between
from tests.converters.stages.toy import Split, ToySource

WORDS = " ".join(f"{i} times {j} is {i * j}." for i in range(20) for j in range(20))
TEXT = Calibration(WORDS[: 16 * 24], 16, 24)
ASKED = HealOptions(1000, batch=4, device="cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder / "m.edge"


def convert(
    out: Path, *, quant: str = "uint2-g64", before: Sequence[Stage] = (), healed: bool = True,
    options: HealOptions = ASKED, text: Calibration = TEXT,
) -> Bundle:  # fmt: skip
    quantize = Quantize(quant, "int8-g32")
    healing = [Heal(options, text, quantize)] if healed else []
    row = (*before, quantize, *healing, Emit(), Verify(golden=True))
    asked = Options(out, "toy", Plan(quant, "int8-g32", "rtn"), progress=False, threads=2)
    Pipeline(ToySource(), asked, row).run()
    return Bundle.open(out, verify="full")


def weights_of(bundle: Bundle, part: str = "model") -> dict[str, Any]:
    return dict(bundle.weights(part).items())


def lost(bundle: Bundle) -> float:
    """KL from the source, over the text's first tokens."""
    source = ToySource()
    original = {
        name: source.tensors[f"model.{name}"].values for name in source.graphs["model"].weights
    }
    rows = [np.frombuffer(TEXT.text[:120].encode(), np.uint8).astype(np.int32) + 4]
    model = (bundle.graph(), weights_of(bundle))
    return divergence_between((source.graphs["model"], original), model, rows)


def test_a_bundle_of_healed_weights(out: Path) -> None:
    with convert(out.with_name("plain.edge"), healed=False) as plain, convert(out) as bundle:
        assert bundle.graph().weights == plain.graph().weights
        assert bundle.graph("draft") == plain.graph("draft")
        for name, weight in weights_of(plain, "draft").items():  # not a text part: left alone
            other = weights_of(bundle, "draft")[name]
            assert stage.tensors_of(weight).keys() == stage.tensors_of(other).keys()
            for key, array in stage.tensors_of(weight).items():
                assert np.array_equal(array, stage.tensors_of(other)[key])
        report = bundle.manifest.report["stages"]["heal"]["model"]
        assert report["improved"]
        assert report["kl_after"] < 0.95 * report["kl_before"]
        assert (report["method"], report["tokens"], report["steps"]) == ("scales", 1056, 11)
        assert report["kept"] == ["inv_freq"]
        assert lost(bundle) < 0.95 * lost(plain)
        assert bundle.manifest.golden  # Verify ran it


def test_a_part_whose_linears_were_split(out: Path) -> None:
    with convert(out, before=[Split()]) as bundle:
        assert "l0.down.u" in bundle.graph().weights
        assert bundle.manifest.report["stages"]["heal"]["model"]["improved"]


def test_what_was_healed_is_not_healed_again(out: Path) -> None:
    """A conversion that is stopped behind the stage goes on there, to the same bytes."""
    whole = out.with_name("whole.edge")
    convert(whole).close()

    class Stop(BaseException):
        pass

    with mock.patch.object(Emit, "run", side_effect=Stop), pytest.raises(Stop):
        convert(out)
    assert not out.exists()
    with mock.patch.object(stage, "heal", side_effect=AssertionError("healed again")):
        convert(out).close()
    for name in ("weights.safetensors", "draft.weights.safetensors"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_stopped_while_it_writes_it_heals_again(out: Path) -> None:
    whole = out.with_name("whole.edge")
    convert(whole).close()
    real = WeightCache.finish

    class Stop(BaseException):
        pass

    def finish(self: WeightCache, weight: str, note: dict[str, float]) -> None:
        if self.folder.name == "heal" and weight == "l0.o":
            raise Stop
        real(self, weight, note)

    with mock.patch.object(WeightCache, "finish", finish), pytest.raises(Stop):
        convert(out)
    with mock.patch.object(stage, "heal", wraps=stage.heal) as healed:
        convert(out).close()
    assert healed.call_count == 1
    assert (out / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


def test_other_options_or_text_heal_again(out: Path) -> None:
    keys = [
        json.dumps(Heal(options, text).key(), sort_keys=True)
        for options in (ASKED, HealOptions(1000, batch=4, method="straight-through"),
                        HealOptions(1001, batch=4), HealOptions(1000, batch=4, rate=1e-4))
        for text in (TEXT, Calibration("other", 16, 24), Calibration(TEXT.text, 15, 24))
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    elsewhere = HealOptions(1000, batch=4, device="cuda", micro_batch=1)
    assert Heal(elsewhere, TEXT).key() == Heal(ASKED, TEXT).key()


def test_a_run_that_diverges_leaves_no_bundle(out: Path) -> None:
    def nan(*_: object) -> torch.Tensor:
        return torch.tensor(torch.nan)

    with (
        mock.patch.object(training, "gradients", nan),
        pytest.raises(ConvertError, match="loss at step 1 of 11 is nan"),
    ):
        convert(out)
    assert not out.exists()


def test_where_nothing_is_won_the_weights_stay(out: Path) -> None:
    asked = HealOptions(1000, batch=4, device="cpu", method="straight-through", rate=0.9)
    with convert(out.with_name("plain.edge"), quant="int4-g32", healed=False) as plain:
        with convert(out, quant="int4-g32", options=asked) as bundle:
            assert not bundle.manifest.report["stages"]["heal"]["model"]["improved"]
        name = "weights.safetensors"
        assert (out / name).read_bytes() == (plain.path / name).read_bytes()


def test_no_text_no_healing(out: Path) -> None:
    with pytest.raises(ConvertError, match="calibration text has 5 tokens, expected at least 24"):
        convert(out, text=Calibration("short", 4, 24))
    with pytest.raises(ConvertError, match="healing got 1 sequences of"):
        convert(out, text=Calibration(TEXT.text[:30], 16, 24))
    with (
        mock.patch("edgert.extras.find_spec", return_value=None),
        pytest.raises(ConvertError, match="healing needs the package torch"),
    ):
        Heal(ASKED, TEXT)
    assert not out.exists()
