"""`verify_bundle`: all faults at once, golden answers, and what it says of a sound bundle."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgert.bundle import Bundle, Golden
from edgert.errors import DeviceError
from edgert.evaluation.verify import Report, greedy, verify_bundle
from edgert.session import Feed, SessionOptions, open_session
from tests.tiny import reseal, tiny_bundle


def test_a_sound_bundle(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    report = verify_bundle(path, values=True)
    assert report.ok
    assert report.name == "tiny"
    assert report.problems() == []
    assert report.unlisted == ()
    assert [check.subject for check in report.checks] == [
        "manifest.json",
        "chat_template.jinja",
        "model.graph.json",
        "tokenizer.json",
        "weights.safetensors",
        "graphs and tensors",
        "values of weights.safetensors",
        "tokenizer",
    ]
    with Bundle.open(path) as bundle:
        assert report.fingerprint == bundle.fingerprint
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_all_faults_at_once(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    size = (path / "tokenizer.json").stat().st_size
    (path / "tokenizer.json").write_bytes(b"x" * size)
    (path / "weights.safetensors").write_bytes(b"x")
    (path / "chat_template.jinja").unlink()
    report = verify_bundle(path)
    assert not report.ok
    assert {check.subject: check.code for check in report.problems()} == {
        "tokenizer.json": "file-hash",
        "weights.safetensors": "file-size",
        "chat_template.jinja": "file-missing",
    }


def test_a_damaged_manifest_is_a_fault_not_an_exception(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    (path / "manifest.json").write_bytes(b"{")
    (problem,) = verify_bundle(path).problems()
    assert (problem.subject, problem.code) == ("manifest.json", "manifest")
    (problem,) = verify_bundle(tmp_path / "nowhere").problems()
    assert problem.code == "bundle-missing"


def test_structure_is_checked_after_the_hashes(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    graph = (path / "model.graph.json").read_text(encoding="utf-8")
    (path / "model.graph.json").write_text(graph.replace('"silu"', '"relu"'), encoding="utf-8")
    reseal(path)
    (problem,) = verify_bundle(path, SessionOptions(device="reference"), values=True).problems()
    assert problem.subject == "graphs and tensors"
    assert "act is 'relu'" in problem.message


def test_unlisted_files_are_named(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    (path / "sub").mkdir()
    (path / "sub" / "notes.txt").write_bytes(b"1")
    report = verify_bundle(path)
    assert report.ok
    assert report.unlisted == ("sub/notes.txt",)


def test_a_tokenizer_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    raw = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    raw["model"]["merges"] = 7
    (bundle / "tokenizer.json").write_text(json.dumps(raw), encoding="utf-8")
    reseal(bundle)
    report = verify_bundle(bundle)
    (problem,) = report.problems()
    assert problem.subject == "tokenizer"
    assert "model.merges is a int" in problem.message


def test_golden_answers(tmp_path: Path) -> None:
    plain = tiny_bundle(tmp_path / "plain.edge", quant="f32")
    prompt = (0, 77, 105, 32)
    with Bundle.open(plain) as bundle:
        session = open_session(bundle, SessionOptions(device="reference"))
        expected = greedy(session, prompt, 5)
        state, ids = session.new_state(), list(prompt)
        for token in expected:  # by hand: the whole sequence every time
            logits = session.step([Feed(state, np.array(ids, np.int32))])[0].logits
            assert int(logits[0].argmax()) == token
            state.rewind(0)
            ids.append(token)
        session.max_rows = 3
        assert greedy(session, prompt, 5) == expected, "in pieces"
    good = tiny_bundle(tmp_path / "a.edge", quant="f32", golden=(Golden(prompt, expected),) * 2)
    report = verify_bundle(good, SessionOptions(device="reference"))
    assert report.ok
    assert [c.subject for c in report.checks][-1] == "golden[1] on reference"
    other = (*expected[:-1], (expected[-1] + 1) % 260)
    bad = tiny_bundle(tmp_path / "b.edge", quant="f32", golden=(Golden(prompt, other),))
    (problem,) = verify_bundle(bad, SessionOptions(device="reference")).problems()
    assert problem.code == "golden"
    assert str(expected) in problem.message
    assert str(other) in problem.message


def test_a_device_that_cannot_be_used_is_no_fault_of_the_bundle(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    with pytest.raises(DeviceError, match="expected one of"):
        verify_bundle(path, SessionOptions(device="abacus"))
    with pytest.raises(DeviceError, match="kv_bits is 8"):
        verify_bundle(path, SessionOptions(device="reference", kv_bits=8))


def test_a_golden_prompt_that_does_not_fit(tmp_path: Path) -> None:
    long = tiny_bundle(tmp_path / "a.edge", context=4, golden=(Golden((1,) * 9, (2,)),))
    (problem,) = verify_bundle(long, SessionOptions(device="reference")).problems()
    assert problem.subject == "golden[0] on reference"
    assert problem.code == "context"


@pytest.mark.parametrize("values", [False, True])
def test_values_only_when_asked(values: bool, tmp_path: Path) -> None:
    report = verify_bundle(tiny_bundle(tmp_path / "a.edge"), values=values)
    assert any("values of" in c.subject for c in report.checks) == values
