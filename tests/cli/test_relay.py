"""`edgert relay-calibrate`, and chats that a small model writes a part of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgert.text.relay_cues import RelayCues, read_cues, write_cues

from ..tiny import tiny_bundle
from .conftest import Edgert

NUMPY = ("--device", "reference")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("relay") / "small.edge", quant="f32", seed=1)


@pytest.fixture
def traces(tmp_path: Path) -> Path:
    said = {"role": "assistant", "content": "We try. Now it is so. Now it was. Now all."}
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "?"}, said]}) + "\n")
    return path


def test_cues_from_traces_serve_a_chat(
    edgert: Edgert, bundle: Path, small: Path, traces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cues.json"
    more = ("--least", 1, "--errors", 0, *NUMPY)
    ran = edgert("relay-calibrate", bundle, small, "--traces", traces, "-o", out, *more)
    assert ran.code == 0, ran.err
    assert "traces measured: 1 of 1" in ran.err
    found = read_cues(out)
    assert [one.cue for one in found.scores] == ["Now"]
    assert f"{out}: {len(found.cues)} cues of 1 that occurred, 1 traces" in ran.out
    assert "'Now'" in ran.out
    assert ("no cue passes" in ran.err) == (not found.cues)
    args = ("relay-calibrate", bundle, small, "--traces", traces, "-o", out, *more, "--json")
    assert edgert(*args).json["scores"][0]["segments"] == 3

    write_cues(out, RelayCues(cues=("Now", "e")))
    asked = ("chat", bundle, "-p", "hi", "--relay", small, *NUMPY, "-n", 12, "--temp", 0)
    ran = edgert(*asked, "--relay-cues", out, "--stats")
    assert ran.code == 0, ran.err
    assert "; relay: " in ran.err
    assert "tokens by the large model" in ran.err
    shown = edgert(*asked, "--relay-cues", out, "--json").json
    assert set(shown["relay"]) == {"large", "small", "switches", "refused"}
    assert edgert("chat", bundle, "-p", "hi", *NUMPY, "-n", 2, "--json").json["relay"] is None


def test_problems_are_answered_and_kept(
    edgert: Edgert, bundle: Path, small: Path, tmp_path: Path
) -> None:
    problems, kept = tmp_path / "problems.txt", tmp_path / "kept.jsonl"
    problems.write_text("one\ntwo\n")
    ran = edgert(
        *("relay-calibrate", bundle, small, "--problems", problems, "-o", tmp_path / "c.json"),
        *("--repeats", 2, "--max-tokens", 6, "--keep-traces", kept, *NUMPY),
    )
    assert ran.code == 0, ran.err
    assert "answers: 4 of 4" in ran.err
    assert "no cue passes" in ran.err
    assert "no cue passes" not in ran.out
    text = kept.read_text(encoding="utf-8")
    lines = [json.loads(line)["messages"] for line in text.split("\n") if line]
    assert [line[0]["content"] for line in lines] == ["one", "one", "two", "two"]
    assert all(line[-1]["role"] == "assistant" for line in lines)


def test_nothing_is_written_over_what_is_read(
    edgert: Edgert, bundle: Path, small: Path, traces: Path, tmp_path: Path
) -> None:
    """Also behind a link; and two files to write have two names."""
    before, same, link = traces.read_bytes(), tmp_path / "same.json", tmp_path / "link.json"
    link.symlink_to(traces)
    for asked, said in (
        (("--traces", traces, "-o", traces), "-o"),
        (("--traces", traces, "-o", link), "-o"),
        (("--traces", link, "-o", traces), "-o"),
        (("--problems", traces, "-o", same, "--keep-traces", traces), "--keep-traces"),
        (("--traces", traces, "-o", same, "--keep-traces", same), "--keep-traces"),
    ):
        ran = edgert("relay-calibrate", bundle, small, *asked, *NUMPY)
        assert (ran.code, f"{said} '" in ran.err) == (2, True), ran.err
        assert "would replace a file that" in ran.err
    assert (traces.read_bytes(), same.exists()) == (before, False)


def test_streams_may_be_named_twice(
    edgert: Edgert, bundle: Path, small: Path, traces: Path
) -> None:
    asked = ("--traces", traces, "-o", "/dev/null", "--keep-traces", "/dev/null")
    ran = edgert("relay-calibrate", bundle, small, *asked, *NUMPY)
    assert ran.code == 0, ran.err


def test_files_without_anything_say_what_is_wanted(
    edgert: Edgert, bundle: Path, small: Path, tmp_path: Path
) -> None:
    start = ("relay-calibrate", bundle, small, "-o", tmp_path / "cues.json", *NUMPY)
    for name, wanted in (("e.jsonl", 'one a line: {"messages": '), ("e.txt", "questions, one a")):
        (tmp_path / name).touch()
        ran = edgert(*start, "--problems", tmp_path / name)
        assert (ran.code, wanted in ran.err) == (2, True), ran.err


def test_wrong_usage(
    edgert: Edgert, bundle: Path, small: Path, traces: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cues.json"
    start = ("relay-calibrate", bundle, small, "-o", out, *NUMPY)
    for args, said in (
        (start, "give either --problems or --traces"),
        ((*start, "--traces", traces, "--problems", traces), "give either"),
        ((*start, "--traces", tmp_path / "none"), "does not exist"),
        ((*start, "--problems", traces), "problem 1: no message is left to be answered"),
        ((*start, "--traces", traces, "--errors", "nan"), "errors is nan, expected 0 or more"),
        (("chat", bundle, "--relay-guard", -3, "-p", "a"), "--relay-guard goes with --relay"),
        (("chat", bundle, "--relay-cues", out, "-p", "a"), "--relay-cues goes with --relay"),
        (("chat", bundle, "--relay", small, "--relay-cues", out, "-p", "a"), "No such file"),
    ):
        ran = edgert(*args)
        assert (ran.code, said in ran.err) == (2, True), ran.err
    assert not out.exists()
    out.write_text('{"cues": [""]}')
    ran = edgert("chat", tmp_path / "absent", "--relay", small, "--relay-cues", out, "-p", "a")
    assert "a cue of " in ran.err, "before anything is loaded"
