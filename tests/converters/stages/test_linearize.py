"""Linearizing as a stage of a conversion: what it makes, resumed, refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgert.converters import torch_packed  # noqa: E402
from edgert.converters.calibrate import Calibration  # noqa: E402
from edgert.converters.linearize import LinearizeOptions  # noqa: E402
from edgert.converters.linearize import run as running  # noqa: E402
from edgert.converters.linearize.options import window_fields  # noqa: E402
from edgert.converters.pipeline import Options, Pipeline  # noqa: E402
from edgert.converters.recipes import Asked, Plan, resolve  # noqa: E402
from edgert.converters.stages import linearize as stage  # noqa: E402
from edgert.converters.stages.base import Context, PartInProgress  # noqa: E402
from edgert.converters.stages.emit import Emit  # noqa: E402
from edgert.converters.stages.linearize import Linearize  # noqa: E402
from edgert.converters.stages.quantize import Quantize  # noqa: E402

from edgert.bundle import Bundle  # noqa: E402
from edgert.errors import ConvertError  # noqa: E402
from edgert.text.template import ChatTemplate  # noqa: E402
from edgert.text.tokenizer import Tokenizer  # noqa: E402
from tests.converters.stages.toy import ToySource  # noqa: E402
from tests.tiny import BOS, EOS, SPECIAL, VOCAB, tiny_tokenizer  # noqa: E402

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


def told_text(calibration: Calibration, tmp_path: Path) -> Any:
    """The text that the command's stage linearizes on."""
    with mock.patch.object(stage, "linearize", side_effect=OSError("seen")) as called:
        row = (Linearize(ASKED, calibration), Emit())
        asked = Options(tmp_path / "m.edge", "toy", Plan("f32", "f32", "rtn"), progress=False)
        with pytest.raises(OSError, match="seen"):
            Pipeline(ToySource(), asked, row).run()
    return called.call_args.args[2]


def test_lines_and_marked_texts_are_documents_in_training(tmp_path: Path) -> None:
    tokenizer = Tokenizer(
        tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=(EOS,), special=SPECIAL
    )
    stories = [f"{i} and {i} are {2 * i}." for i in range(150)]
    chats = tuple(({"role": "user", "content": story},) for story in stories)
    lines = told_text(Calibration("", 8, 64, chats), tmp_path)
    marked = told_text(Calibration(f"\n{SPECIAL[EOS]}\n".join(stories), 8, 64), tmp_path)
    for text, front in ((lines, "user: "), (marked, "")):
        assert text.end == EOS
        ids = np.concatenate([text.train, text.held])
        said = [
            tokenizer.decode(each.tolist()).strip()
            for each in np.split(ids, np.flatnonzero(ids == EOS) + 1)
        ]
        assert len({each.removeprefix(front) for each in said} & set(stories)) > 100
        assert text.passkeys
        assert not any(EOS in prompt for each in text.passkeys.values() for prompt, _ in each)
    assert told_text(Calibration(" ".join(stories), 8, 64), tmp_path).end is None


def test_the_end_is_no_token_that_chats_have_inside() -> None:
    def ending(
        template: str | None, *chats: Sequence[str], eos: tuple[int, ...] = (EOS, BOS)
    ) -> int | None:
        tokenizer = Tokenizer(
            tiny_tokenizer().encode(), vocab_size=VOCAB, eos_token_ids=eos, special=SPECIAL
        )
        rows = tuple(tuple({"role": "user", "content": said} for said in chat) for chat in chats)
        rendered = template and ChatTemplate(template, {}, control=tokenizer.control)
        return Calibration("", 1, 8, rows).ending(tokenizer, rendered or None)

    turns = "{% for m in messages %}{{ m.content }}<|eos|>{% endfor %}"
    assert ending(turns, ["a"], ["b"]) == EOS, "it stands at the ends of chats alone"
    assert ending(turns, ["a", "b"], ["c"]) == BOS
    assert ending(turns, ["a", "b"], ["c"], eos=(EOS,)) is None
    assert ending(turns, ["a"]) is None, "a single document"
    assert ending(None, ["a <|eos|> b"], ["c"]) == EOS, "what a message says is text"


def test_a_model_that_cannot_begin_anew_is_trained_on_running_text(tmp_path: Path) -> None:
    refused = ConvertError("node 'x' has a state of its own", code="torch-packed")
    text = f"{WORDS}{SPECIAL[EOS]}{WORDS}"
    with mock.patch.object(torch_packed, "check_resets", side_effect=refused):
        assert told_text(Calibration(text, 8, 64), tmp_path).end is None


def test_a_short_text_is_refused(tmp_path: Path) -> None:
    short = Linearize(ASKED, Calibration(WORDS[:100], 1, 64))
    asked = Options(tmp_path / "m.edge", "toy", Plan("f32", "f32", "rtn"), progress=False)
    with pytest.raises(ConvertError) as info:
        Pipeline(ToySource(), asked, (short, Emit())).run()
    assert info.value.code == "calibration-text"
    assert not np.any([path.name.endswith(".edge") for path in tmp_path.iterdir()])
