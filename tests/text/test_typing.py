"""What a type checker sees of an installed edgert: keywords and results, in a user's own script."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = """\
import edgert
from edgert.converters.convert import convert
from edgert.kernels.quant import Quantized

with edgert.load("model.edge") as model:
    answer = model.generate("Once", max_tokens=8, temperature=0.8, stop=["."], logprobs=2)
    reveal_type(answer)
    reveal_type(answer.text)
    reveal_type(answer.logprobs)
    stream = model.stream([1, 2], xtc_probability=0.5, logit_bias={3: 1.0}, special=True)
    reveal_type(stream)
    reveal_type(next(stream))
    reveal_type(stream.result)
    messages = [{"role": "user", "content": "hi"}]
    reveal_type(model.chat(messages, dry_multiplier=0.8, tools=None, stop="x"))
    reveal_type(model.stream_chat(messages, typical_p=0.9, template={"a": 1}))
    talk = model.conversation("be brief")
    reveal_type(talk.say("hi", dynatemp_range=0.2, seed=1))
    reveal_type(talk.stream("hi", min_p=None))
    options: edgert.SamplingOptions = {"top_k": 40, "repeat_penalty": 1.1}
    reveal_type(model.generate("x", **options))
reveal_type(convert)
reveal_type(Quantized)
reveal_type(model.logits([1]))
"""
REVEALED = (
    "Generation", "str", "tuple[TokenLogprob, ...] | None", "Stream", "str", "Generation",
    "Generation", "Stream", "Generation", "Stream", "Generation", "def (", "Quantized", "ndarray",
)  # fmt: skip
WRONG = """\
import edgert

with edgert.load("model.edge") as model:
    model.generate("x", temprature=0.8)
    model.generate("x", top_k="40")
    model.stream("x", stop=3)
    model.chat([], dry_multiplyer=1.0)
    model.stream_chat([], logprobs=1.5)
    model.conversation().say("x", max_token=3)
    model.conversation().stream("x", xtc_threshold="low")
    options: edgert.SamplingOptions = {"top_q": 0.5}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment whose site-packages hold edgert as a wheel lays it out."""
    folder = tmp_path_factory.mktemp("user")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "env"], check=True)
    (packages,) = (folder / "env").glob("lib/python*/site-packages")
    (packages / "edgert").mkdir()
    for path in (ROOT / "edgert").iterdir():
        (packages / "edgert" / path.name).symlink_to(path)
    for room in ("kernels", "converters", "devices"):
        (packages / "edgert" / room).symlink_to(ROOT / room)
    others = [path for path in sys.path if Path(path).name.endswith("-packages")]
    (packages / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return folder


def mypy(site: Path, text: str) -> list[str]:
    """Lines of `mypy --strict` about a script, as a user of that environment would run it."""
    pytest.importorskip("mypy", reason="mypy is not installed")
    (site / "script.py").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable"]
    found = subprocess.run(
        [*command, str(site / "env" / "bin" / "python"), "--cache-dir", str(site / "cache"),
         "script.py"],
        cwd=site, capture_output=True, text=True,
    )  # fmt: skip
    assert not found.stderr, found.stderr
    return found.stdout.splitlines()


def test_a_users_script_is_typed(site: Path) -> None:
    lines = mypy(site, SCRIPT)
    types = [found[1] for line in lines if (found := re.search(r'Revealed type is "(.*)"', line))]
    short = [re.sub(r"\b[\w.]+\.(\w+)", r"\1", name) for name in types]
    assert "Success" in lines[-1], "\n".join(lines)
    for name, expected in zip(short, REVEALED, strict=True):
        assert expected in name
        assert name != "Any"


def test_wrong_keywords_and_values_are_errors(site: Path) -> None:
    lines = mypy(site, WRONG)
    found = [
        int(match[1]) for line in lines if (match := re.match(r"script.py:(\d+): error", line))
    ]
    assert found == list(range(4, 12)), "\n".join(lines)
    assert '"temprature"' in lines[0]
