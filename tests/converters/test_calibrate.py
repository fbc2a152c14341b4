"""Gram matrices collected by running the model: against the reference session's own inputs."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from edgert.converters import calibrate, layers
from edgert.converters.compress.whiten import Inputs
from edgert.converters.convert import convert
from edgert.converters.quantize.job import Encoded, Job
from edgert.converters.report import ConvertReport
from edgert.converters.stages import quantize as stage
from edgert.converters.stages.base import PartInProgress

from benchmarks.make_checkpoint import SPECIAL as SPECIAL_OF_TINY
from benchmarks.make_checkpoint import make_checkpoint
from edgert.bundle import Bundle
from edgert.cli.convert import PRESETS
from edgert.demo import demo_bundle
from edgert.errors import ConvertError
from edgert.session import open_session
from edgert.session.base import Feed
from edgert.session.reference import ReferenceSession
from edgert.text.template import ChatTemplate
from edgert.text.tokenizer import Tokenizer

from ..closeness import assert_close
from ..tiny import BOS, EOS, SPECIAL, TEMPLATE, tiny_graph, tiny_tokenizer, tiny_weights

GRAPH = tiny_graph(quant="f32", window=20)
WEIGHTS = tiny_weights(GRAPH)
VALUES = list(calibrate.inputs_of(GRAPH).values())


def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 260, n).astype(np.int32) for n in (100, 1, 37)]


def expected(value: str) -> np.ndarray:
    """X^T X in float64, every sequence fed in one step."""
    session, total = ReferenceSession(GRAPH, WEIGHTS), 0.0
    for ids in sequences():
        (result,) = session.step([Feed(session.new_state(), ids, "none", taps=(value,))])
        x = result.taps[value].astype(np.float64)
        total = total + x.T @ x
    return np.asarray(total)


def test_which_products_and_what_they_read() -> None:
    inputs = calibrate.inputs_of(GRAPH)
    assert sorted(inputs) == sorted(
        f"l{i}.{name}" for i in range(2) for name in ("qkv", "o", "gate_up", "down")
    )
    assert len(set(inputs.values())) == 8  # the tied head, of selected rows, is none of them


class Reader:
    encoding = "f32"

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.shape = array, array.shape

    def spans(self) -> list[tuple[int, int]]:
        n = len(self.array)
        return [(0, n // 2), (n // 2, n)]

    def rows(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.array[start:stop])


def part() -> PartInProgress:
    readers = {name: Reader(np.asarray(array)) for name, array in WEIGHTS.items()}
    return PartInProgress("model", "text", GRAPH, readers)  # type: ignore[arg-type]


def test_segments_pass_one_value_on() -> None:
    found = layers.segments(GRAPH, VALUES)
    assert len(found) == 4  # attention and feed-forward of two layers
    for before, after in itertools.pairwise(found):
        assert after.inputs[0].name == before.outputs[0].name
        assert len(after.inputs) == 1
    nodes = [node.output for graph in found for node in graph.nodes]
    assert len(nodes) == len(set(nodes))
    assert "logits" not in nodes  # nothing wanted is read there


def test_collected_layer_by_layer(tmp_path: Path) -> None:
    given, fit, held = sequences() * 3, dict[str, Inputs](), 8
    for found in layers.Layers(part(), given, VALUES, folder=tmp_path):
        assert len(found) == 2
        fit |= found
    assert set(fit) == set(VALUES)
    assert not list(tmp_path.iterdir())
    for value, inputs in fit.items():
        assert inputs.held is not None
        assert inputs.gram.rows + inputs.held.rows == 3 * 138
        assert inputs.held.rows == len(given[held - 1])
        wanted = 3 * expected(value)
        assert_close(value, wanted, inputs.gram.matrix + inputs.held.matrix, rms=0.05)


def test_without_kernels_it_is_told_that_calibrating_is_slow(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with mock.patch.object(layers.code, "available", return_value=False):
        found = list(layers.Layers(part(), sequences(), VALUES))
    assert len(found) == 4
    assert "calibrated on NumPy" in caplog.text


def test_a_run_that_stops_goes_on_from_the_last_whole_segment(tmp_path: Path) -> None:
    whole: dict[str, Inputs] = {}
    for found in layers.Layers(part(), sequences(), VALUES):
        whole |= found
    steps = iter(layers.Layers(part(), sequences(), VALUES, folder=tmp_path))
    first = [next(steps), next(steps)]
    steps.close()  # type: ignore[attr-defined]
    rest = list(layers.Layers(part(), sequences(), VALUES, folder=tmp_path))
    assert len(rest) == 3  # what stopped before its inputs were used is run again
    for inputs in (first[0], *rest):
        for value, got in inputs.items():
            assert np.array_equal(got.gram.matrix, whole[value].gram.matrix)


@pytest.mark.parametrize("spoil", ["cut", "changed", "foreign"])
def test_what_was_passed_on_is_not_believed_blindly(spoil: str, tmp_path: Path) -> None:
    steps = iter(layers.Layers(part(), sequences(), VALUES, folder=tmp_path))
    next(steps), next(steps)
    steps.close()  # type: ignore[attr-defined]
    data = next(tmp_path.glob("passed-*.f32"))
    if spoil == "cut":
        data.write_bytes(data.read_bytes()[:-4])
    elif spoil == "changed":
        data.write_bytes(bytes(4) + data.read_bytes()[4:])
    given = sequences()[:2] if spoil == "foreign" else sequences()
    assert len(list(layers.Layers(part(), given, VALUES, folder=tmp_path))) == 4


def test_pieces_of_a_text() -> None:
    pieces = calibrate.sequences_of(range(1000), 64, 5)
    assert [len(piece) for piece in pieces] == [64] * 5
    starts = [int(piece[0]) for piece in pieces]
    assert starts == sorted(set(starts))
    assert all(start % 64 == 0 for start in starts)
    assert all(np.array_equal(p, np.arange(p[0], p[0] + 64)) for p in pieces)
    assert len(calibrate.sequences_of(range(1000), 64, 99)) == 15
    again = calibrate.sequences_of(range(1000), 64, 5)
    assert all(np.array_equal(a, b) for a, b in zip(pieces, again, strict=True))


@pytest.mark.parametrize(
    ("tokens", "length", "count"), [(63, 64, 1), (0, 1, 1), (10, 0, 1), (9, 3, 0)]
)
def test_too_little_text(tokens: int, length: int, count: int) -> None:
    with pytest.raises(ConvertError, match="calibration text"):
        calibrate.sequences_of(range(tokens), length, count)


# --- in a conversion ------------------------------------------------------------------------------

TEXT = " ".join(f"{i} times {j} is {i * j}." for i in range(40) for j in range(40))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("tiny", tmp_path_factory.mktemp("calibrate") / "tiny", dtype="f32")


def errors(report: ConvertReport) -> dict[str, float]:
    return {weight.name: weight.error for weight in report.weights}


@pytest.mark.parametrize("quant", ["int4", "int3"])
def test_gptq_encodes_the_products_and_rounds_the_rest(
    quant: str, checkpoint: Path, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    calibration = calibrate.Calibration.read(text, sequences=8, length=64)
    plain = convert(checkpoint, tmp_path / "rtn.edge", quant=quant, progress=False, method="rtn")
    made = convert(
        checkpoint, tmp_path / "gptq.edge", quant=quant, progress=False, calibration=calibration
    )
    differ = {name for name, error in errors(made).items() if error != errors(plain)[name]}
    assert differ == set(calibrate.inputs_of(Bundle.open(tmp_path / "gptq.edge").graph()))
    with Bundle.open(tmp_path / "gptq.edge", verify="full") as bundle:
        assert bundle.manifest.report["calibration"] == calibration.key()
        session = open_session(bundle)
        feed = Feed(session.new_state(), np.arange(9, dtype=np.int32), "all")
        assert np.isfinite(session.step([feed])[0].logits).all()
        session.close()


def test_resumed_it_gives_the_same_bytes(checkpoint: Path, tmp_path: Path) -> None:
    """Weights that an earlier run finished are taken from its cache."""
    calibration = calibrate.Calibration(TEXT, 4, 64)
    whole = tmp_path / "whole.edge"
    convert(checkpoint, whole, quant="int3", progress=False, calibration=calibration)
    made, encode = tmp_path / "made.edge", stage.encode_matrix

    def stops(job: Job) -> Encoded:
        if job.name.startswith("layers.1"):
            raise KeyboardInterrupt
        return encode(job)

    with mock.patch.object(stage, "encode_matrix", stops), pytest.raises(KeyboardInterrupt):
        convert(checkpoint, made, quant="int3", progress=False, calibration=calibration)
    report = convert(checkpoint, made, quant="int3", progress=False, calibration=calibration)
    assert report.resumed > 0
    for name in ("weights.safetensors", "model.safetensors"):
        if (whole / name).exists():
            assert (whole / name).read_bytes() == (made / name).read_bytes()


def test_no_text_no_method(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ConvertError, match="not UTF-8"):
        calibrate.Calibration.read(tmp_path / "latin.txt")
    with pytest.raises(ConvertError, match="calibration text"):
        convert(
            checkpoint, tmp_path / "m.edge", quant="int4", progress=False,
            calibration=calibrate.Calibration("too short"),
        )  # fmt: skip
    assert not (tmp_path / "m.edge").exists()


# --- chats, and the sample ------------------------------------------------------------------------


def written(folder: Path, *lines: str) -> Path:
    path = folder / "chats.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


CHAT = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]}'


def tiny_tokens(template: str | None = TEMPLATE) -> tuple[Tokenizer, ChatTemplate | None]:
    """Tokenizer and template of the tiny model."""
    special = {"bos_token": SPECIAL[BOS], "eos_token": SPECIAL[EOS]}
    tokenizer = Tokenizer(
        tiny_tokenizer().encode(), vocab_size=260, eos_token_ids=(EOS,), bos_token_id=BOS,
        special=special.values(),
    )  # fmt: skip
    if template is None:
        return tokenizer, None
    return tokenizer, ChatTemplate(
        template, special, control=tokenizer.control, added=tokenizer.vocabulary.added
    )


def test_chats_are_read_in_every_form_of_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, CHAT, "", '[{"role": "user", "content": "a"}]', '{"text": "b"}', '"c"')
    found = calibrate.Calibration.read(path).chats
    assert [[(m["role"], m["content"]) for m in chat] for chat in found] == [
        [("user", "hi"), ("assistant", "ho")],
        [("user", "a")],
        [("user", "b")],
        [("user", "c")],
    ]


def test_chats_are_written_by_the_models_template(tmp_path: Path) -> None:
    calibration = calibrate.Calibration.read(written(tmp_path, CHAT, '"<|eos|>"'))
    ids = calibration.ids(*tiny_tokens())
    words = [SPECIAL[BOS], SPECIAL[2], *"hi", SPECIAL[EOS], SPECIAL[3], *"ho", SPECIAL[EOS]]
    tokenizer = tiny_tokens()[0]
    assert ids[: len(words)] == [
        SPECIAL.index(word) if word in SPECIAL else tokenizer.encode(word)[0] for word in words
    ]
    second = ids[len(words) :]
    assert second[:2] == [BOS, 2]
    assert second.count(EOS) == 1, "what a message says is text, no special token"
    plain = calibration.ids(*tiny_tokens(None))
    assert tokenizer.decode(plain).startswith("user: hi\nassistant: ho\n")


def test_a_conversion_uses_the_template(checkpoint: Path, tmp_path: Path) -> None:
    calibration = calibrate.Calibration.read(written(tmp_path, *[CHAT] * 40), 4, 32)
    seen: list[np.ndarray] = []
    real = layers.Layers.__init__

    def noted(
        self: layers.Layers, part: object, given: list[np.ndarray], *a: Any, **o: Any
    ) -> None:
        seen.extend(given)
        real(self, part, given, *a, **o)

    with mock.patch.object(layers.Layers, "__init__", noted):
        convert(
            checkpoint, tmp_path / "m.edge", quant="int3", progress=False, golden=False,
            calibration=calibration,
        )  # fmt: skip
    ids = np.concatenate(seen)
    marks = [SPECIAL_OF_TINY.index(mark) for mark in ("<|im_start|>", "<|im_end|>")]
    assert min(np.count_nonzero(ids == mark) for mark in marks) > 2


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"prompt": "x"}', "holds no messages"),
        ("[]", "holds no messages"),
        ('{"messages": ["hi"]}', "holds no messages"),
        ('{"text": 3}', "holds no messages"),
        ('{"messages": "hi"}', "holds no messages but 'hi'"),
        ('{"messages": {"role": "user"}}', "holds no messages but"),
        ("17", "holds no messages"),
    ],
)
def test_a_line_that_is_no_chat_is_told_by_its_number(line: str, said: str, tmp_path: Path) -> None:
    path = written(tmp_path, CHAT, "", line)
    with pytest.raises(ConvertError) as info:
        calibrate.Calibration.read(path)
    assert f"{path}, line 3 {said}" in info.value.message
    assert (info.value.code, bool(info.value.hint)) == ("calibration-text", True)


def test_no_chats_and_chats_that_the_template_refuses(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="holds no chats, expected one a line"):
        calibrate.chats_of("\n\n", "a.jsonl")
    refusing = "{% if messages[0]['role'] != 'user' %}{{ raise_exception('no system') }}{% endif %}"
    path = written(tmp_path, CHAT, '[{"role": "system", "content": "a"}]')
    with pytest.raises(ConvertError, match=r"chats\.jsonl, chat 2: .*no system") as info:
        calibrate.Calibration.read(path).ids(*tiny_tokens(refusing))
    assert info.value.code == "calibration-text"


def test_the_sample_is_enough_for_the_full_preset() -> None:
    with Bundle.open(demo_bundle()) as bundle:
        tokenizer = Tokenizer.from_bundle(bundle)
    sample = calibrate.Calibration.sample(calibrate.FULL)
    found = sample.token_sequences(tokenizer, None, 2048)
    assert [len(ids) for ids in found] == [calibrate.LENGTH] * calibrate.FULL
    assert PRESETS == {"quick": calibrate.QUICK, "full": calibrate.FULL}


def test_what_a_result_is_measured_on_is_fitted_to_by_nothing() -> None:
    with Bundle.open(demo_bundle()) as bundle:
        tokenizer = Tokenizer.from_bundle(bundle)
    text = calibrate.Calibration.sample(16, 64)

    def each(pieces: list[np.ndarray]) -> set[bytes]:
        return {piece.tobytes() for piece in pieces}

    held = text.held(tokenizer, None, 64)
    assert len(each(held)) == calibrate.HELD
    assert not each(held) & each(text.token_sequences(tokenizer, None, 64))
    assert not each(held) & each(text.for_healing(tokenizer, None, 64))
    short = calibrate.Calibration(text.text[:3000], 100, 64)  # nothing is left of it
    assert each(short.held(tokenizer, None, 64)) < each(short.for_healing(tokenizer, None, 64))
