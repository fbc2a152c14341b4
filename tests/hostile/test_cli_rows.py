"""What a person sees when a bundle is bad: exit code 2, one reason, one hint, no traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from edgert.cli import run
from tests.hostile.make_corpus import CORPUS, Mutation, make
from tests.tiny import tiny_bundle

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links and FIFOs of POSIX")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("corpus") / "good.edge")


@pytest.mark.parametrize("mutation", CORPUS, ids=lambda mutation: mutation.id)
def test_generate_refuses(
    mutation: Mutation, good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = make(mutation, good, tmp_path / "bad.edge")
    command = ["generate", str(bad), "-p", "Once", "-n", "1"]
    assert run([*command, "--json"]) == 2
    out, err = capsys.readouterr()
    error = json.loads(out)["error"]
    assert (error["type"], error["code"]) == ("BundleError", mutation.code)
    assert all(text in error["message"] for text in mutation.says)
    assert error["hint"]
    assert err == ""
    assert run(command) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert "\n  hint: " in err
    assert "Traceback" not in err


def test_verify_tells_all_and_fails(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mutation = next(m for m in CORPUS if m.id == "H10-bit_in_tokenizer.json")
    bad = make(mutation, good, tmp_path / "bad.edge")
    assert run(["verify", str(good)]) == 0
    assert "BAD" not in capsys.readouterr().out
    assert run(["verify", str(bad)]) != 0
    out = capsys.readouterr().out
    assert "BAD   tokenizer.json" in out
    assert "SHA-256" in out
