"""Linearizing as a stage of a conversion: what it makes, resumed, refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgert.converters.calibrate import Calibration  # noqa: E402
from edgert.converters.linearize import LinearizeOptions  # noqa: E402
from edgert.converters.linearize import run as running  # noqa: E402
from edgert.converters.linearize.options import window_fields  # noqa: E402
from edgert.converters.pipeline import Options, Pipeline  # noqa: E402
from edgert.converters.recipes import Asked, Plan, resolve  # noqa: E402
from edgert.converters.stages.base import Context, PartInProgress  # noqa: E402
from edgert.converters.stages.emit import Emit  # noqa: E402
from edgert.converters.stages.linearize import Linearize  # noqa: E402
from edgert.converters.stages.quantize import Quantize  # noqa: E402

from edgert.bundle import Bundle  # noqa: E402
from edgert.errors import ConvertError  # noqa: E402
from tests.converters.stages.toy import ToySource  # noqa: E402

WORDS = " ".join(f"{i} times {j} is {i * j}." for i in range(20) for j in range(20))
TEXT = Calibration(WORDS, 8, 64)
ASKED = LinearizeOptions(
    1, 1500, features=4, chunk=16, batch=256, lengths=(32, 64, 64), device="cpu", progress=False
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def convert(out: Path, *, options: LinearizeOptions = ASKED) -> dict[str, PartInProgress]:
    """Without verification; the parts as later stages calibrate on them."""
    seen: dict[str, PartInProgress] = {}

    class Look:
        name = "look"

        def key(self) -> dict[str, str]:
            return {}

        def nbytes(self, part: PartInProgress) -> int:
            return 0

        def run(self, part: PartInProgress, context: Context) -> PartInProgress:
            seen[part.name] = context.fitted
            return part

    row = (Linearize(options, TEXT), Look(), Quantize("int8-g32", "int8-g32"), Emit())
    asked = Options(out, "toy", Plan("int8-g32", "int8-g32", "rtn"), progress=False, threads=2)
    Pipeline(ToySource(), asked, row).run()
    return seen


def test_a_bundle_has_linear_layers_and_says_how_they_came(tmp_path: Path) -> None:
    seen = convert(tmp_path / "m.edge")
    with Bundle.open(tmp_path / "m.edge") as bundle:
        kinds = [node.op for node in bundle.graph("model").nodes if node.state]
        assert sorted(kinds) == ["attention", "causal_conv", "linear_attention"]
        assert all(node.op != "linear_attention" for node in bundle.graph("draft").nodes)
        told = bundle.manifest.report["stages"]["linearize"]["model"]
        assert len(told["turned"]) == 1
        assert set(told["tried"]) == {"1"}
        assert told["memory"]["state"] > 0
        assert told["passed"] is (not told["tried"]["1"]["failed"])
    assert any(node.op == "linear_attention" for node in seen["model"].graph.nodes)
    assert all(node.op != "linear_attention" for node in seen["draft"].graph.nodes)


def test_what_is_aligned_is_kept_when_a_conversion_stops(tmp_path: Path) -> None:
    out = tmp_path / "m.edge"
    with (
        mock.patch.object(running, "distil", side_effect=OSError("power")),
        pytest.raises(OSError, match="power"),
    ):
        convert(out)
    kept = out.with_name("m.edge.stage") / "model" / "linearize" / "work"
    assert (kept / "align.pt").exists()
    with mock.patch.object(running, "moments", side_effect=AssertionError("again")):
        convert(out)
    assert out.exists()
    assert not out.with_name("m.edge.stage").exists()


def test_states_that_are_too_large_are_refused_before_the_work(tmp_path: Path) -> None:
    large = LinearizeOptions("all", 1500, device="cpu", progress=False, serve=50)
    with pytest.raises(ConvertError) as info:
        convert(tmp_path / "m.edge", options=large)
    assert info.value.code == "linearize-memory"
    assert not list(tmp_path.iterdir())


def test_options_of_the_command_repeat_it() -> None:
    plan = resolve(Asked(linearize=LinearizeOptions("auto", 7, features=4, serve=9, anyway=True)))
    told = plan.options()
    at = told.index("--linearize")
    assert told[at : at + 9] == [
        "--linearize", "auto", "--tokens", "7", "--features", "4", "--serve", "9", "--anyway",
    ]  # fmt: skip
    assert plan.calibration is not None


@pytest.mark.parametrize(("tokens", "told"), [(None, []), (0, ["--window", "0"]),
                                              (32, ["--window", "32"])])  # fmt: skip
def test_a_window_is_told_as_it_was_asked_for(tokens: int | None, told: list[str]) -> None:
    asked = LinearizeOptions("all", 7, **window_fields(tokens))
    words = resolve(Asked(linearize=asked)).options()
    assert words[words.index("--linearize") + 4 :][: len(told)] == told
    assert ("--window" in words) == bool(told)


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    stage = Linearize(ASKED, Calibration(WORDS[:100], 1, 64))
    asked = Options(tmp_path / "m.edge", "toy", Plan("f32", "f32", "rtn"), progress=False)
    with pytest.raises(ConvertError) as info:
        Pipeline(ToySource(), asked, (stage, Emit())).run()
    assert info.value.code == "calibration-text"
    assert not np.any([path.name.endswith(".edge") for path in tmp_path.iterdir()])
