"""The examples: each runs as a reader would run it, with the model in the package."""

from __future__ import annotations

import ast
import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import edgert
from edgert.demo import demo_bundle

from .conftest import ROOT

EXAMPLES = ROOT / "examples"
LINES = 60


def run(name: str, *args: str, typed: str = "") -> str:
    """Standard output of an example."""
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(
        command, input=typed, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_told_and_public(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) < LINES
    assert f"python examples/{path.name}" in (ast.get_docstring(tree) or "")
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {node.module for node in froms if str(node.module).startswith("edgert")} == {
        "edgert.demo"
    }
    used = set(re.findall(r"\bedgert\.([a-zA-Z_]+)", ast.unparse(tree)))
    assert used - {"demo"} <= set(edgert.__all__)


def test_chat() -> None:
    said = run("chat.py", typed="Hello!\nWhat colour is the sky?\n\n")
    counts = re.findall(r"\[(\d+) tokens, (\d+) read before\]", said)
    assert len(counts) == 2
    assert int(counts[0][1]) == 0 < int(counts[1][1])
    assert "blue" in said


def test_asyncio_clients() -> None:
    said = run("asyncio_clients.py").splitlines()
    assert said[0].startswith("What is a llama? -> ")
    assert len([line for line in said if " -> " in line]) == 3
    assert said[-1] == "cancelled: CancelledError"


def test_streaming() -> None:
    said = run("streaming.py")
    ends = re.findall(r"\[(\w+), (\d+) tokens, (\d+) a second\]", said)
    assert ends[0][:2] == ("length", "48")
    assert ends[1][0] == "cancelled"
    assert 1 <= int(ends[1][1]) < 800
    assert len(said.split()) > 30


def test_evaluate(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat and looked at the moon. " * 60, encoding="utf-8")
    plain = re.search(r"perplexity +([\d.]+)\nbits per byte +([\d.]+)", run("evaluate.py"))
    again = re.search(r"perplexity +([\d.]+)", run("evaluate.py", str(demo_bundle()), str(text)))
    assert plain is not None
    assert again is not None
    assert 3 < float(plain[1]) < 60
    assert 0.3 < float(plain[2]) < 1.6
    assert float(again[1]) < 2  # what repeats is easily foretold


def test_export_onnx(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    said = run("export_onnx.py", str(tmp_path / "demo.edge"))
    found = re.search(r"logits ([\d.]+)% apart", said)
    assert found is not None
    assert float(found[1]) < 3
    assert (tmp_path / "demo.edge" / "model.onnx").is_file()
    assert not (demo_bundle() / "model.onnx").exists()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Where the web application listens."""
    command = [sys.executable, str(EXAMPLES / "web_app.py"), "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as app:
        assert app.stdout is not None
        try:
            yield int(app.stdout.readline().rsplit(":")[-1].split("/")[0])
        finally:
            app.terminate()


def ask(port: int, body: bytes, path: str = "/chat", host: str = "") -> tuple[int, list[str]]:
    """Status of a request and the pieces in which the answer came."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        headers = {"Host": host} if host else {}
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        pieces = []
        while piece := answer.read1(1 << 16):
            pieces.append(piece.decode())
        return answer.status, pieces
    finally:
        connection.close()


def test_web_app(port: int) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "What colour is the sky?"}]})
    with edgert.load(demo_bundle()) as model:
        expected = model.chat(json.loads(body)["messages"], max_tokens=200, temperature=0).text
    status, pieces = ask(port, body.encode())
    assert status == 200
    assert "".join(pieces) == expected
    assert len(expected.split()) > 2


@pytest.mark.parametrize(
    ("body", "path", "host", "status"),
    [
        (b"not json", "/chat", "", 400),
        (b"[]", "/chat", "", 400),
        (b'{"messages": []}', "/chat", "", 400),
        (b"{}", "/elsewhere", "", 404),
        (b"{}", "/chat", "example.org:80", 404),
        (b" " * 70_000, "/chat", "", 413),
    ],
)
def test_web_app_refuses(port: int, body: bytes, path: str, host: str, status: int) -> None:
    assert ask(port, body, path, host)[0] == status
