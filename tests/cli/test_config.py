"""Flags from variables and from a file: order, types, errors, for every verb."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import pytest

from edgert.cli import VERBS, _command, cli
from edgert.cli.config import VARIABLE, Config, _listed, _names, _options

from .conftest import Edgert

NUMPY = ("--device", "reference", "--temp", "0")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """write(text): make it the configuration file."""

    def write(text: str | bytes) -> Path:
        path = tmp_path / "config.toml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        monkeypatch.setenv(VARIABLE, str(path))
        return path

    return write


def tokens(edgert: Edgert, *args: object) -> int:
    return int(edgert("generate", *args, "-p", "hi", "--json").json["completion_tokens"])


def test_flag_then_variable_then_file(
    edgert: Edgert, bundle: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("max_tokens = 9\ntemp = 0\ndevice = 'reference'\n[generate]\nmax-tokens = 3\n")
    assert tokens(edgert, bundle) == 3
    monkeypatch.setenv("EDGERT_MAX_TOKENS", "4")
    assert tokens(edgert, bundle) == 4
    monkeypatch.setenv("EDGERT_MAX_TOKENS", "")
    assert tokens(edgert, bundle) == 3
    assert tokens(edgert, bundle, "-n", 5) == 5
    write("max_tokens = 9\n[chat]\nmax_tokens = 3\nsystem = 's'")
    assert tokens(edgert, bundle, *NUMPY) == 9


def test_every_flag_has_a_variable_and_a_key() -> None:
    config = Config(Path("file"), VERBS)
    for command in (cli, *map(_command, VERBS)):
        for option in _options(command):
            assert _names(option), f"{command.name}: {option.opts} has no long form"
            variables = [option.envvar] if isinstance(option.envvar, str) else option.envvar
            plain = [f"EDGERT_{name.upper()}" for name in _names(option)]
            taken = {"EDGERT_CACHE": "EDGERT_IMAGE_CACHE"}  # moves the cache's folder
            assert variables == [taken.get(name, name) for name in plain]
            help_text = command.get_help(click.Context(command))
            assert variables[0] in help_text
            value = True if option.is_flag and not option.count else "1"
            one = Config(Path("file"), VERBS, {_names(option)[0]: value})
            assert one.shared(command)
            one.check([command])
    assert config.shared(cli) == {}


def test_variables_of_every_kind(
    edgert: Edgert, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGERT_JSON", "1")
    monkeypatch.setenv("EDGERT_TEMPERATURE", "0")
    monkeypatch.setenv("EDGERT_DEVICE", "reference")
    monkeypatch.setenv("EDGERT_CTX_SIZE", "16")
    monkeypatch.setenv("EDGERT_PROMPT", "hi")
    free = edgert("generate", bundle).json
    assert free["prompt_tokens"] + free["completion_tokens"] == 16
    monkeypatch.setenv("EDGERT_LOGIT_BIAS", '["70=100", "71=-3"]')
    assert set(edgert("generate", bundle).json["token_ids"]) == {70}
    monkeypatch.setenv("EDGERT_STOP_TOKEN_ID", "[70, 71]")
    assert edgert("generate", bundle).json["token_ids"] == [70]
    monkeypatch.setenv("EDGERT_STOP_TOKEN_ID", "[70,")
    assert "no JSON list" in edgert("generate", bundle).json["error"]["message"]
    for name, value, expected in (
        ("EDGERT_STOP_TOKEN_ID", "[70, true]", "holds true, expected a list of numbers"),
        ("EDGERT_STOP_TOKEN_ID", "[[70]]", "holds [70], expected a list of numbers"),
        ("EDGERT_STOP", "[1,2]", "holds 1, expected a list of texts"),
        ("EDGERT_STOP", '["a", null]', "holds null, expected a list of texts"),
        ("EDGERT_LOGIT_BIAS", "[70]", "holds 70, expected a list of texts"),
    ):
        with monkeypatch.context() as context:
            context.setenv(name, value)
            said = edgert("generate", bundle).json["error"]["message"]
            assert said.endswith(f"{expected} (from {name})")
    monkeypatch.delenv("EDGERT_STOP_TOKEN_ID")
    monkeypatch.setenv("EDGERT_KV_BITS", "7")
    said = edgert("generate", bundle).json["error"]["message"]
    assert said.endswith("(from EDGERT_KV_BITS)")
    assert _listed("the end") == ["the end"]


def test_values_of_every_kind(edgert: Edgert, bundle: Path, write: Any) -> None:
    write("json = true\ndevice = 'reference'\ntemp = 0.0\nctx_size = '16'\nstop_token_id = 71\n"
          "[generate]\nprompt = 'hi'\nlogit_bias = ['71=100']")  # fmt: skip
    assert edgert("generate", bundle).json["token_ids"] == [71]
    path = write("\ufeffdevice = 'reference'\nmax_tokens = 2\n[chat]\nprompt = 'hi'\n"
                 "chat_template_kwargs = {messages = 1}")  # fmt: skip
    assert "expected variables" in edgert("chat", bundle).err
    path = write("threads = 'many'")
    assert f"(from {path})" in edgert("generate", bundle, "-p", "a").err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ctx_sizes = 1", "unknown key 'ctx_sizes', did you mean 'ctx_size'?"),
        ("zzzz = 1", "unknown key 'zzzz', expected the name of a flag"),
        ("[chatt]\nsystem = 's'", "unknown key 'chatt', did you mean 'chat'?"),
        ("[generate]\nsystem = 's'", "unknown key 'generate.system'"),
        ("generate = 3", "generate is '3', expected a table [generate]"),
        ("stats = 1", "stats is '1', expected true or false"),
        ("threads = true", "threads is 'True', expected a text or a number"),
        ("threads = [1, 2]", "threads is '[1, 2]', expected a text or a number"),
        ("stop = [true]", "stop is 'True', expected a list of texts"),
        ("stop = ['a', 1]", "stop is '1', expected a list of texts"),
        ("stop_token_id = [1, true]", "is 'True', expected a list of texts or numbers"),
        ("stop = 2000-01-01", "expected a list of texts or numbers"),
        ("temp = 0\ntemperature = 1", "gives a flag a second value"),
        ("ctx_size = 9\nctx-size = 9", "gives a flag a second value"),
        ("threads = ", "no TOML"),
        (b"system = '\xff'", "no TOML"),
        ("a = " + "[" * 100_000, "no TOML"),
        ("#" * (1 << 20) + "\n", "more than 1048576 bytes"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_the_file_is_named(
    edgert: Edgert, bundle: Path, write: Any, text: str | bytes, said: str
) -> None:
    path = write(text)
    ran = edgert("generate", bundle, "-p", "a", *NUMPY)
    assert (ran.code, ran.out) == (2, "")
    assert f"error: {path}: " in ran.err or f"error: {path}" in ran.err
    assert said in ran.err
    found = edgert("generate", bundle, "-p", "a", *NUMPY, "--json").json["error"]
    assert (found["type"], found["code"]) == ("RequestError", "config")


def test_flags_of_other_verbs_are_no_error(edgert: Edgert, bundle: Path, write: Any) -> None:
    write("quant = 'int8'\nno_history = true\nwarm = false\n[bench]\ndepth = [0, 16]\n")
    assert edgert("generate", bundle, "-p", "a", *NUMPY, "-n", 1).code == 0


def test_a_variable_called_much_like_a_flags_is_noticed(
    edgert: Edgert, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgert.notices._shown", set())
    args = ("generate", bundle, "-p", "a", "-n", 1, *NUMPY)
    for name in ("EDGERT_PROMPT_TOKENS", "EDGERT_FOO", "EDGERTON_TEMP", "EDGERT_SHARED_DATA"):
        monkeypatch.setenv(name, "7")
    assert edgert(*args).err == ""
    monkeypatch.setenv("EDGERT_TEMPERATUR", "0")
    monkeypatch.setenv("EDGERT_CACHES", "x")
    ran = edgert(*args)
    assert (ran.code, ran.err.splitlines()) == (0, [
        "edgert: EDGERT_CACHES is no flag's variable, did you mean EDGERT_CACHE?",
        "edgert: EDGERT_TEMPERATUR is no flag's variable, did you mean EDGERT_TEMPERATURE?",
    ])  # fmt: skip


def test_where_the_file_is(
    edgert: Edgert, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.toml"))
    ran = edgert("generate", bundle, "-p", "a", *NUMPY)
    assert (ran.code, "none.toml: no such file, EDGERT_CONFIG names it" in ran.err) == (2, True)
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    assert str(tmp_path) in edgert("generate", bundle, "-p", "a", *NUMPY).err
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr("platformdirs.user_config_path", lambda *_, **__: tmp_path / "edgert")
    assert edgert("generate", bundle, "-p", "a", *NUMPY, "-n", 1).code == 0
    (tmp_path / "edgert").mkdir()
    (tmp_path / "edgert" / "config.toml").write_text("max_tokens = 2", encoding="utf-8")
    assert tokens(edgert, bundle, *NUMPY) == 2
    assert edgert("doctor", "--json").json["config"] == str(tmp_path / "edgert" / "config.toml")


def test_messages_by_level(
    edgert: Edgert, bundle: Path, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("generate", bundle, "-p", "a", "-n", 1, *NUMPY)
    assert edgert(*args).err == ""
    assert edgert(*args, "-v").err.startswith("edgert: ")
    for flags in (("-v", *args), (*args, "--log", "info"), ("--log", "debug", *args)):
        assert "computes on reference" in edgert(*flags).err
    monkeypatch.setenv("EDGERT_LOG", "info")
    assert edgert(*args).err.startswith("edgert: ")
    monkeypatch.setenv("EDGERT_LOG", "loud")
    assert "'loud' is not one of" in edgert(*args).err
    monkeypatch.delenv("EDGERT_LOG")
    write("verbose = 1")
    assert edgert(*args).err.startswith("edgert: ")
    assert os.environ.get("EDGERT_LOG") is None
    assert "read standard input" not in edgert(*args).err
