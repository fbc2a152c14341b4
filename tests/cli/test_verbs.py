"""Every verb, in this process: output, JSON forms, exit codes, errors."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import edgert as package
from edgert.cli import VERBS
from edgert.cli.sampling import NAMES
from edgert.cli.settings import emit_json
from edgert.session import SessionOptions
from edgert.text.params import SamplingParams

from ..tiny import tiny_bundle
from .conftest import Edgert

NUMPY = ("--device", "reference")


def test_help_names_every_verb(edgert: Edgert) -> None:
    ran = edgert("--help")
    assert ran.code == 0
    for verb, summary in VERBS.items():
        assert f"  {verb} " in ran.out
        assert summary in " ".join(ran.out.split())


@pytest.mark.parametrize("verb", list(VERBS))
def test_every_verb_explains_itself(edgert: Edgert, verb: str) -> None:
    ran = edgert(verb, "--help")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"Usage: edgert {verb} ")


@pytest.mark.parametrize("args", [["generrate"], ["bensh", "--json"]])
def test_a_misspelt_verb_names_the_nearest(edgert: Edgert, args: list[str]) -> None:
    ran = edgert(*args)
    assert ran.code == 2
    assert f"did you mean {args[0][:2]}" in (ran.err + ran.out).replace("'", "")


@pytest.mark.parametrize(
    ("foreign", "own"), [("run", "chat"), ("show", "inspect"), ("ls", "list"), ("remove", "rm")]
)
def test_what_other_programs_call_a_verb_names_ours(edgert: Edgert, foreign: str, own: str) -> None:
    assert f"no verb {foreign!r}, did you mean {own!r}?" in edgert(foreign, "model").err


@pytest.mark.parametrize("verb", ["generate", "chat", "bench", "eval", "verify"])
def test_kv_bits_reach_the_session(
    edgert: Edgert, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    import edgert.session as module

    def refuse(bundle: object, options: SessionOptions) -> None:
        raise package.DeviceError(f"asked for {options.kv_bits} bits")

    monkeypatch.setattr(module, "open_session", refuse)
    (tmp_path / "text").write_text("some text", encoding="utf-8")
    more = {"generate": ["-p", "a"], "chat": ["-p", "a"], "eval": ["--text", tmp_path / "text"],
            "verify": ["--device", "cpu"]}  # fmt: skip
    for bits in ("4", "8", "16", "32"):
        assert (
            f"asked for {bits} bits"
            in edgert(verb, bundle, *more.get(verb, []), "--kv-bits", bits).err
        )
    assert "asked for 0 bits" in edgert(verb, bundle, *more.get(verb, [])).err
    assert "is not one of" in edgert(verb, bundle, "--kv-bits", "7").err


def test_kv_bits_where_they_mean_nothing(edgert: Edgert, bundle: Path) -> None:
    ran = edgert("generate", bundle, "-p", "a", "--kv-bits", "8", *NUMPY)
    assert (ran.code, "kv_bits is 8, the NumPy path keeps 32" in ran.err) == (2, True)
    ran = edgert("verify", bundle, "--kv-bits", "8")
    assert (ran.code, "--kv-bits needs --device" in ran.err) == (2, True)


def test_a_checkpoint_is_no_bundle(edgert: Edgert, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    ran = edgert("generate", tmp_path, "-p", "a")
    assert ran.code == 2
    assert "is a checkpoint, expected a bundle directory" in ran.err
    assert f"edgert convert {tmp_path} -o {tmp_path.name}.edge" in ran.err
    (tmp_path / "config.json").unlink()
    assert "has no manifest.json" in edgert("generate", tmp_path, "-p", "a").err


def test_version(edgert: Edgert) -> None:
    assert edgert("--version").out.startswith("edgert ")


def test_sampling_flags_are_the_parameters_of_python() -> None:
    assert set(NAMES) == set(SamplingParams.__struct_fields__)


@pytest.mark.parametrize(
    "args", [["fly"], ["generate", "--wings"], ["eval", "x"], ["convert", "x"]]
)
def test_wrong_usage_exits_with_2(edgert: Edgert, args: list[str]) -> None:
    ran = edgert(*args)
    assert (ran.code, ran.out) == (2, "")
    assert "Usage: edgert" in ran.err
    assert "Traceback" not in ran.err


def test_generate_prints_text_and_a_newline(edgert: Edgert, bundle: Path) -> None:
    ran = edgert("generate", bundle, "-p", "hello", "-n", 6, "--temp", 0, *NUMPY, "--stats")
    with package.load(bundle, device="reference") as model:
        expected = model.generate("hello", max_tokens=6, temperature=0)
    assert (ran.code, ran.out) == (0, expected.text + "\n")
    assert "5 prompt tokens" in ran.err
    assert expected.finish_reason in ran.err


def test_generate_as_json(edgert: Edgert, bundle: Path) -> None:
    found = edgert("generate", bundle, "-p", "hello", "-n", 6, "-s", 3, "--temp", 1, *NUMPY,
                   "--json").json  # fmt: skip
    with package.load(bundle, device="reference") as model:
        expected = model.generate("hello", max_tokens=6, seed=3, temperature=1)
    assert found["schema"] == 1
    assert found["text"] == expected.text
    assert tuple(found["token_ids"]) == expected.token_ids
    assert found["prompt_tokens"] == expected.usage.prompt_tokens == 5
    assert (found["finish_reason"], found["seed"]) == ("length", 3)
    assert found["timings"]["generation_s"] > 0


def test_prompts_from_file_and_pipe(edgert: Edgert, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hello é", encoding="utf-8")
    rest = ("-n", 4, "--temp", 0, *NUMPY)
    wanted = edgert("generate", bundle, "-p", "hello é", *rest).out
    assert edgert("generate", bundle, "-f", file, *rest).out == wanted
    for dash in (["-p", "-"], ["-f", "-"], []):
        assert edgert("generate", bundle, *dash, *rest, stdin="hello é").out == wanted


def test_sampling_flags_reach_the_sampler(edgert: Edgert, bundle: Path) -> None:
    rest = ("-p", "hello", *NUMPY, "--json", "--temp", 0)
    free = edgert("generate", bundle, *rest, "-n", 4).json["token_ids"]
    biased = edgert("generate", bundle, *rest, "-n", 4, "--logit-bias", "70=100").json["token_ids"]
    assert biased == [70] * 4 != free
    ran = edgert("generate", bundle, *rest, "-n", 4, "--stop-token-id", free[0])
    assert ran.json["token_ids"] == free[:1]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--top-p", "1.5"], "top_p is 1.5, expected more than 0.0 up to 1.0"),
        (["-n", "0"], "max_tokens is 0"),
        (["--device", "abacus"], "device 'abacus' is unknown"),
        (["--logit-bias", "x=1"], "expected ID=BIAS"),
        (["-n", "4000"], "the context holds 128"),
    ],
)
def test_impossible_requests_exit_with_2(
    edgert: Edgert, bundle: Path, args: list[str], said: str
) -> None:
    args = [*(() if "--device" in args else NUMPY), *args]
    ran = edgert("generate", bundle, "-p", "hi", *args)
    assert (ran.code, ran.out) == (2, "")
    assert said in ran.err
    assert "Traceback" not in ran.err
    ran = edgert("generate", bundle, "-p", "hi", "--json", *args)
    assert (ran.code, ran.err) == (2, "")
    assert set(ran.json["error"]) == {"type", "code", "message", "hint", "values"}
    assert said in ran.json["error"]["message"]


def test_a_prompt_is_asked_for(edgert: Edgert, bundle: Path) -> None:
    assert "no prompt: give -p" in edgert("generate", bundle).err
    ran = edgert("generate", bundle, "-p", "a", "-f", "b")
    assert (ran.code, "expected one" in ran.err) == (2, True)
    ran = edgert("generate", bundle, *NUMPY, stdin=b"\xff")
    assert (ran.code, "standard input: byte 0 is not UTF-8" in ran.err) == (2, True)


def test_a_dash_reads_standard_input(edgert: Edgert, bundle: Path) -> None:
    options = ["-n", "3", "--temp", "0", "--json", *NUMPY]
    given = edgert("generate", bundle, "-p", "hi", *options).json
    for dash in (["-"], ["-p", "-"], ["-f", "-"]):
        assert edgert("generate", bundle, *dash, *options, stdin="hi").json["text"] == given["text"]
    for wrong in (["-", "-p", "a"], ["-", "-f", "b"], ["words"]):
        ran = edgert("generate", bundle, *wrong, *NUMPY, stdin="hi")
        assert (ran.code, ran.out) == (2, ""), wrong


def test_a_newline_at_the_end_and_a_byte_order_mark_are_no_text(
    edgert: Edgert, bundle: Path, tmp_path: Path
) -> None:
    options = ["-n", "3", "--temp", "0", "--json", *NUMPY]
    ask = lambda *args, **more: edgert("generate", bundle, *options, *args, **more).json
    file = tmp_path / "prompt.txt"
    for data, meant in (
        (b"hi\n", "hi"),
        (b"hi\r\n", "hi"),
        (b"hi\n\n", "hi\n"),
        (b"\xef\xbb\xbfhi", "hi"),
        (b"h\xef\xbb\xbfi \n", "h\ufeffi "),
    ):
        wanted = ask("-p", meant)["token_ids"]
        file.write_bytes(data)
        assert ask("-f", file)["token_ids"] == wanted
        for dash in (["-"], ["-p", "-"], []):
            assert ask(*dash, stdin=data)["token_ids"] == wanted, data
    assert ask("-p", "hi\n")["prompt_tokens"] == 3
    found = ask(stdin="hi".encode("utf-16"))["error"]
    assert "is UTF-16, expected UTF-8" in found["message"]
    assert "iconv -f UTF-16" in found["hint"]


def test_two_prompts_are_refused(edgert: Edgert, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("hi", encoding="utf-8")
    for prompt in (["-p", "hi"], ["-f", file]):
        ran = edgert("generate", bundle, *prompt, *NUMPY, stdin="text")
        assert (ran.code, "standard input holds text besides the prompt" in ran.err) == (2, True)
        assert edgert("generate", bundle, *prompt, "-n", 1, *NUMPY, stdin="").code == 0


@pytest.mark.skipif(sys.platform == "win32", reason="pipes that can be asked")
def test_standard_input_of_every_kind(bundle: Path, tmp_path: Path) -> None:
    """With -p: what waits in a pipe or file is refused, an idle pipe and /dev/null are left alone;
    chat -p reads a pipe to its end, and says so when nothing comes."""
    command = [
        sys.executable,
        "-m",
        "edgert",
        "generate",
        str(bundle),
        "-p",
        "hi",
        "-n",
        "1",
        *NUMPY,
    ]
    run = lambda stdin: (
        subprocess.run(
            command, stdin=stdin, capture_output=True, timeout=60, check=False
        ).returncode
    )
    file = tmp_path / "text"
    file.write_bytes(b"")
    with file.open("rb") as stdin:
        assert run(stdin) == 0
    file.write_bytes(b"text")
    with file.open("rb") as stdin:
        assert run(stdin) == 2
    assert run(subprocess.DEVNULL) == 0
    ours, theirs = os.pipe()
    assert run(ours) == 0
    os.write(theirs, b"text")
    assert run(ours) == 2
    os.close(ours)
    os.close(theirs)
    command[3:4], (ours, theirs) = ["chat"], os.pipe()
    with subprocess.Popen(command, stdin=ours, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as p:
        assert p.stderr is not None
        assert b"waiting for standard input to end" in p.stderr.readline()
        os.close(ours)
        os.write(theirs, b"text")
        os.close(theirs)
        assert (p.wait(60), p.stderr.read()) == (0, b"")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-16", "latin-1:strict"])
def test_json_is_utf_8_in_any_encoding(bundle: Path, encoding: str) -> None:
    bias = ["--logit-bias", "231=100", "-n", "1", "--temp", "0"]
    args = ["generate", str(bundle), "-p", "Grüße ✓", *bias, *NUMPY, "--json"]
    env = os.environ | {"PYTHONIOENCODING": encoding}
    for more in ([], ["--stop", "<|no|>", "--top-p", "3"]):
        command = [sys.executable, "-m", "edgert", *args, *more]
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        found = json.loads(done.stdout.decode("utf-8"))
        assert ("error" in found) == bool(more)
        assert done.stderr == b""


def test_json_shows_letters_as_they_are() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        emit_json({"text": "✓ é \udcff"})
    stream.flush()
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    assert buffer.getvalue().decode("utf-8") == '{"text": "✓ é \\udcff"}\n'


def test_absent_files_are_one_line(edgert: Edgert, bundle: Path, tmp_path: Path) -> None:
    for args in (["generate", tmp_path / "no.edge", "-p", "a"],
                 ["generate", bundle, "-f", tmp_path / "no.txt"],
                 ["bench", tmp_path / "no.edge"], ["inspect", tmp_path]):  # fmt: skip
        ran = edgert(*args)
        assert (ran.code, ran.out) == (2, ""), args
        assert ran.err.startswith("error: ")
        assert str(tmp_path) in ran.err
        assert "hint: " in ran.err


def test_faults_of_ours_say_so(
    edgert: Edgert, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **options: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("edgert.evaluation.verify.verify_bundle", broken)
    ran = edgert("verify", bundle)
    assert ran.code == 70
    assert "fault in edgert: ZeroDivisionError: oh" in ran.err
    assert "Traceback" not in ran.err
    assert "Traceback" in edgert("--debug", "verify", bundle).err
    assert edgert("verify", bundle, "--json").json["error"]["code"] == "internal"


def test_an_error_after_ctrl_c_is_no_fault(
    edgert: Edgert, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **options: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise AttributeError("half way")

    monkeypatch.setattr("edgert.evaluation.verify.verify_bundle", interrupted)
    assert edgert("verify", bundle) == (130, "", "")


def test_memory_errors_name_a_way_out(
    edgert: Edgert, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr("edgert.evaluation.verify.verify_bundle", full)
    ran = edgert("verify", bundle)
    assert (ran.code, "--ctx-size" in ran.err) == (2, True)


def test_verify(edgert: Edgert, bundle: Path, tmp_path: Path) -> None:
    ran = edgert("verify", bundle, "--values")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, f"{bundle}: verified")
    damaged = tmp_path / "bad.edge"
    shutil.copytree(bundle, damaged)
    (damaged / "stray.txt").write_text("x", encoding="utf-8")
    weights = damaged / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    ran = edgert("verify", damaged)
    assert ran.code == 1
    assert "BAD   weights.safetensors" in ran.out
    assert "stray.txt is not part of the bundle" in ran.out
    ran = edgert("verify", damaged, "--json")
    assert (ran.code, ran.json["ok"]) == (1, False)
    faults = [check for check in ran.json["checks"] if not check["ok"]]
    assert [(fault["subject"], fault["code"]) for fault in faults] == [
        ("weights.safetensors", "file-hash")
    ]


def test_eval_of_a_text(edgert: Edgert, bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("some text, some more", encoding="utf-8")
    found = edgert("eval", bundle, "--text", file, "--window", 8, *NUMPY, "--json").json
    assert found["tokens"] == found["bytes"] == 20
    assert (found["window"], found["stride"], found["schema"]) == (8, 4, 1)
    assert found["perplexity"] == pytest.approx(2.718281828 ** found["nll_per_token"])
    assert found["bits_per_byte"] == pytest.approx(found["nll_per_token"] / 0.693147181)
    ran = edgert("eval", bundle, "--text", file, "--window", 8, *NUMPY)
    assert "in windows of 8 tokens moved on by 4" in ran.out


def test_eval_of_a_task(edgert: Edgert, bundle: Path, tmp_path: Path) -> None:
    row = {"query": "It rained, because", "choices": ["of clouds.", "x."], "gold": 0}
    (tmp_path / "copa.jsonl").write_text(json.dumps(row), encoding="utf-8")
    args = ("eval", bundle, "--task", "copa", "--data", tmp_path, *NUMPY)
    found = edgert(*args, "--json").json["tasks"]["copa"]
    assert (found["examples"], found["metrics"]["acc"] in (0, 1)) == (1, True)
    assert "(1 examples)" in edgert(*args).out
    assert "--task needs --data" in edgert("eval", bundle, "--task", "copa").err
    ran = edgert("eval", bundle, "--task", "chess", "--data", tmp_path, *NUMPY)
    assert (ran.code, "task 'chess' is unknown" in ran.err) == (2, True)
    (tmp_path / "valid.txt").write_text("One\nline.\n\nTwo", encoding="utf-8")
    args = ("eval", bundle, "--task", "copa", "--task", "wikipedia", "--data", tmp_path, *NUMPY)
    found = edgert(*args, "--json").json["tasks"]
    assert set(found) == {"copa", "wikipedia"}
    assert (found["wikipedia"]["documents"], found["wikipedia"]["bytes"]) == (2, 12)
    assert "bits per byte" in edgert(*args).out


def test_inspect_a_bundle(edgert: Edgert, tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "mixed.edge", quant="mixed")
    found = edgert("inspect", path, "--json").json
    assert (found["kind"], found["name"], found["layers"]) == ("bundle", "tiny", 2)
    assert (found["context"], found["vocabulary"]) == (128, 260)
    layer = 2 * 64 + (4 + 4) * 16 * 64 + 64 * 64 + 2 * 96 * 64 + 64 * 96
    assert found["parameters"] == 260 * 64 + 64 + 2 * layer
    assert sum(found["encodings"].values()) == found["weights"]
    header = 8 + int.from_bytes((path / "weights.safetensors").read_bytes()[:8], "little")
    assert found["weights"] == (path / "weights.safetensors").stat().st_size - header
    assert found["cache_per_token"] == 2 * 2 * 2 * 2 * 16  # layers, k and v, bytes, heads, size
    assert found["memory"] > found["weights"] + 128 * found["cache_per_token"]
    assert "2 layers" not in edgert("inspect", path).out
    assert f"({path})" in edgert("inspect", path).out


def test_bench(edgert: Edgert, bundle: Path) -> None:
    args = ("bench", bundle, "-p", 12, "-n", 3, "-d", 0, "-d", 20, "-r", 2, *NUMPY)
    found = edgert(*args, "--json").json
    assert set(found) == {
        "schema", "bundle", "device", "rows", "load_s", "peak_rss_mb", "read_gbps",
    }  # fmt: skip
    tests = [(row["test"], row["depth"]) for row in found["rows"]]
    assert tests == [("pp12", 0), ("tg3", 0), ("pp12", 20), ("tg3", 20)]
    for row in found["rows"]:
        assert row["tps_median"] > 0
        assert row["p90_ms"] > 0
        assert row["tps_std"] >= 0
        assert row["threads"] == 1
    assert found["rows"][3]["read_bytes"] > found["rows"][1]["read_bytes"]
    assert found["load_s"] > 0
    assert found["peak_rss_mb"] > 10
    table = edgert(*args).out.splitlines()
    assert [line.split()[0] for line in table[1:5]] == ["pp12", "tg3", "pp12", "tg3"]
    ran = edgert("bench", bundle, "-p", 100, "-d", 100, *NUMPY)
    assert (ran.code, "expected 1 to 128 in all" in ran.err) == (2, True)


def test_doctor(edgert: Edgert) -> None:
    ran = edgert("doctor", "--json")
    found = ran.json
    assert found["packages"]["numpy"]
    assert found["cpu"]["instruction_set"] in found["cpu"]["usable"]
    assert "CPUExecutionProvider" in found["providers"]
    assert found["memory"]["total"] > found["memory"]["available"] > 0
    assert ran.code == (1 if found["problems"] else 0)
    assert "instructions" in edgert("doctor").out


def test_doctor_reports_what_is_wrong(
    edgert: Edgert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("edgert.machine.doctor.CORE", ("numpy", "surely-not-installed"))
    ran = edgert("doctor", "--json")
    said = [problem["message"] for problem in ran.json["problems"]]
    assert ran.code == 1
    assert "surely-not-installed is not installed" in said
    assert any("cannot be written" in message for message in said)


def test_a_full_context_goes_on_where_that_is_asked_for(edgert: Edgert, bundle: Path) -> None:
    asked = ["generate", bundle, "-p", "a", "-c", 32, "-n", 80, "--temp", 0, "--json"]
    ran = edgert(*asked)
    assert (ran.code, ran.json["error"]["code"]) == (2, "context")
    ran = edgert(*asked, "--context-shift", "--logit-bias", "1=-100")
    assert (ran.code, ran.json["completion_tokens"]) == (0, 80)
    ran = edgert("generate", bundle, "-p", "a", "--kv-memory", "3Q")
    assert (ran.code, "expected bytes such as 512M" in ran.err) == (2, True)
