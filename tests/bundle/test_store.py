"""The store of named bundles: names, pulling, listing, removing; a hub on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import edgert
from edgert.bundle import Bundle, store
from edgert.bundle.known_models import KNOWN
from edgert.bundle.pull import pull
from edgert.bundle.store import located, parse, stored
from edgert.cli import run
from edgert.cli.list_models import ago
from edgert.errors import BundleError, ConvertError, RequestError, ResourceError
from edgert.storage.lock import FileLock
from tests.converters.checkpoints import write_checkpoint
from tests.fake_hub import fake_hub
from tests.tiny import tiny_bundle

# text -> how it is listed, what it is pulled from
NAMES = {
    "qwen3": ("qwen3:8b-int4", "Qwen/Qwen3-8B"),
    "qwen3:latest": ("qwen3:8b-int4", "Qwen/Qwen3-8B"),
    "Qwen3:0.6B": ("qwen3:0.6b-int4", "Qwen/Qwen3-0.6B"),
    "qwen3:0.6b-int8": ("qwen3:0.6b-int8", "Qwen/Qwen3-0.6B"),
    "qwen3:f16": ("qwen3:8b-f16", "Qwen/Qwen3-8B"),
    "qwen3:0.6b-int4-g32": ("qwen3:0.6b-int4-g32", "Qwen/Qwen3-0.6B"),
    "qwen3:999b": ("qwen3:999b-int4", ""),
    "mine": ("mine:int4", ""),
    "mine:v2-int8": ("mine:v2-int8", ""),
    "Org/Repo-1.5B": ("Org/Repo-1.5B:int4", "Org/Repo-1.5B"),
    "Org/Repo:int8": ("Org/Repo:int8", "Org/Repo"),
    "Org/Repo@v1.0:F16": ("Org/Repo@v1.0:f16", "Org/Repo@v1.0"),
}
HOSTILE = (
    "", ".", "..", "../x", "a/../b", "/etc", "a/b/c", "a//b", "a:", ":a", "a:b:c", "~", "-rf",
    "a\\b", "C:\\x", "a b", "a\n", "a\0b", "name@", "name@main", "org/repo:int9", "org/repo:../x",
    "org/x.edge", "con", "org/nul", "con:int4", "a/..b", "é", "a" * 300, "org/repo@../../x",
    "org/re\u202epo", ".hidden", "a/.b", "name:..",
)  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of the test's own."""
    monkeypatch.setattr(store, "cache_root", lambda: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "checkpoint"
    write_checkpoint("llama", path)
    return path


@pytest.mark.parametrize("text", NAMES)
def test_names(text: str) -> None:
    name = parse(text)
    assert (name.text, name.source) == NAMES[text]
    assert parse(name.text) == name
    assert name.path.is_relative_to(store.store_root())
    assert name.path.suffix == ".edge"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No path leaves the store, nothing is made or removed."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    for use in (parse, pull, store.entry):
        with pytest.raises(RequestError, match="is no name") as caught:
            use(text)
        assert caught.value.hint
    assert located(text or ".") == Path(text or ".")
    assert sorted(tmp_path.rglob("*")) == before


def test_known_names_are_names() -> None:
    for short, sizes in KNOWN.items():
        for size, hub in sizes.items():
            assert parse(f"{short}:{size}").source == hub
            assert parse(hub).source == hub


def test_a_checkpoint_from_here(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = pull("Mine", source=checkpoint, method="rtn", progress=False)
    assert (found.name, found.finished) == ("mine:int4", True)
    assert found.nbytes == sum(p.stat().st_size for p in found.path.iterdir())
    with edgert.load("mine", threads=1) as model:
        assert model.name == "mine:int4"
    with Bundle.open("mine:int4") as bundle:
        assert bundle.path == found.path
    again = pull("mine", source=checkpoint, progress=False)
    assert again == found, "what is there stays"
    assert run(["inspect", "mine"]) == run(["verify", "mine"]) == 0
    assert "mine:int4" in capsys.readouterr().out


def test_a_bundle_from_here(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    found = pull("tiny:v1-int8", source=bundle, progress=False)
    assert (found.path / "manifest.json").read_bytes() == (bundle / "manifest.json").read_bytes()
    (bundle / "weights.safetensors").write_bytes(b"damaged")
    with pytest.raises(BundleError):
        pull("other", source=bundle, progress=False)
    assert [entry.name for entry in stored()] == ["tiny:v1-int8"]


def test_a_path_goes_before_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull("mine", source=tiny_bundle(tmp_path / "tiny.edge"), progress=False)
    monkeypatch.chdir(tmp_path)
    assert located("mine") == parse("mine").path
    (tmp_path / "mine").mkdir()
    assert located("mine") == Path("mine")


def test_listing_and_removing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    assert "the store is empty" in capsys.readouterr().out
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    for name in ("one", "two:int8", "org/repo@v1"):
        assert run(["pull", name, "--source", str(bundle)]) == 0
    capsys.readouterr()
    assert run(["list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("one:int4", "two:int8", "org/repo@v1:int4", "just now"))
    assert run(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["models"]
    assert {row["name"] for row in rows} == {"one:int4", "two:int8", "org/repo@v1:int4"}
    size = sum(p.stat().st_size for p in bundle.iterdir())
    assert all(row["bytes"] == size and row["finished"] for row in rows)
    assert run(["rm", "one"]) == 2, "nobody to ask"
    assert run(["rm", "one", "org/repo@v1", "--yes"]) == 0
    assert [entry.name for entry in stored()] == ["two:int8"]
    assert not (store.store_root() / "hub" / "org").exists()
    capsys.readouterr()
    assert run(["rm", "one", "-y"]) == 2
    assert "is not in the store, which holds two:int8" in capsys.readouterr().err
    assert run(["rm", "-y", "two:int8", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == ["two:int8"]


def test_rm_asks_at_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import click

    pull("mine", source=tiny_bundle(tmp_path / "tiny.edge"), progress=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    for answer, left in ((False, 1), (True, 0)):
        monkeypatch.setattr(click, "confirm", lambda *_, answer=answer, **__: answer)
        run(["rm", "mine"])
        assert len(stored()) == left


def test_what_a_stopped_pull_left(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is listed as unfinished, goes on with the same command, and can be removed."""
    from edgert.converters.stages.emit import Emit

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Emit, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            pull("mine", source=checkpoint, method="rtn", progress=False)
    (left,) = stored()
    assert (left.name, left.finished) == ("mine:int4", False)
    with pytest.raises(BundleError):
        edgert.load("mine")
    assert run(["list"]) == 0
    assert "unfinished" in capsys.readouterr().out
    assert run(["rm", "mine", "--yes"]) == 0
    assert stored() == []
    with monkeypatch.context() as patched:
        patched.setattr(Emit, "run", stop)
        with pytest.raises(KeyboardInterrupt):
            pull("mine", source=checkpoint, method="rtn", progress=False)
    assert pull("mine", source=checkpoint, method="rtn", progress=False).finished
    assert [path.name for path in parse("mine").path.parent.iterdir()] == ["int4.edge"]


def test_two_at_one_name(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    kept = pull("mine", source=bundle, progress=False)
    with FileLock(kept.path.with_name("int4.edge.lock"), "a pull"):
        with pytest.raises(ResourceError, match=f"in use by process {os.getpid()}"):
            pull("mine", source=bundle, force=True, progress=False)
        with pytest.raises(ResourceError, match="in use by process"):
            store.remove(kept)
    Bundle.open("mine").close()


def test_names_that_nothing_stands_behind(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        edgert.load("qwen3:0.6b")
    assert "edgert pull qwen3:0.6b-int4" in caught.value.hint
    with pytest.raises(RequestError, match=r"one of the sizes 8b, 0\.6b"):
        pull("qwen3:999b")
    with pytest.raises(RequestError, match="means no repository") as caught:
        pull("unheard-of")
    assert "did you mean" not in caught.value.message
    with pytest.raises(RequestError, match=r"; did you mean qwen3, qwen2"):
        pull("qwen")
    with pytest.raises(RequestError, match="does not exist"):
        pull("mine", source=tmp_path / "nothing")


def _edgert(url: str, cache: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, which reads the hub's address at its start."""
    env = {
        **os.environ, "EDGERT_CACHE": str(cache), "HF_ENDPOINT": url, "HF_HOME": str(cache / "hf"),
        "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HUB_ETAG_TIMEOUT": "2",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "edgert", *words],
        env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_without_a_hub_a_pull_ends_at_once_in_one_error(cache: Path) -> None:
    pytest.importorskip("huggingface_hub")
    with fake_hub({}) as hub:
        url = hub.url
    start = time.perf_counter()
    ran = _edgert(url, cache, "pull", "some/other")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert time.perf_counter() - start < 15, "the client's tries alone take 30 seconds"
    notice, error, hint = ran.stderr.splitlines()
    assert notice.startswith("edgert: some/other is fetched and converted")
    assert "127.0.0.1 cannot be reached" in error
    assert hint.startswith("  hint: check the name, the network")
    assert not list((cache / "models" / "hub").iterdir()), "no empty folders"


@pytest.mark.slow
def test_from_the_hub_offline_and_cut_off(checkpoint: Path, cache: Path, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    repo = shutil.copytree(checkpoint, tmp_path / "repo")
    name = "some/tiny-llama:f16"
    with fake_hub({"some/tiny-llama": repo}) as hub:
        missing = _edgert(hub.url, cache, "pull", "some/other")
        assert missing.returncode == 2
        assert "could not be downloaded" in missing.stderr
        hub.cut["model.safetensors"] = 1000
        got = _edgert(hub.url, cache, "pull", name, "--json")
        if got.returncode:  # a client that does not go on by itself
            got = _edgert(hub.url, cache, "pull", name, "--json")
        assert got.returncode == 0, got.stdout + got.stderr
        found = json.loads(got.stdout)
        assert found["name"] == name
        assert [file for file, _ in hub.asked].count("model.safetensors") == 2
        url = hub.url
    again = _edgert(url, cache, "pull", name)
    assert again.returncode == 0, "what is in the store needs no hub"
    offline = _edgert(url, cache, "pull", "qwen3:0.6b")
    assert offline.returncode == 2
    assert "Qwen/Qwen3-0.6B is no directory here and could not be downloaded" in offline.stderr
    assert "Traceback" not in offline.stderr
    with edgert.load(name, threads=1) as model:
        assert model.session.graph.weights["layers.0.qkv"].encoding == "f16"


def test_a_hub_id_is_converted_as_its_tag_says(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgert.converters.sources import hub

    monkeypatch.setattr(hub, "_download", lambda source: checkpoint)
    found = pull("any/llama:int8", method="rtn", progress=False)
    with Bundle.open(found.path) as bundle:
        assert bundle.graph().weights["layers.0.qkv"].encoding == "int8-g32"
        assert "any/llama" in bundle.manifest.provenance.command  # type: ignore[union-attr]
    with pytest.raises(ConvertError):
        pull("any/llama", source=checkpoint / "tokenizer.json", progress=False)


def test_how_long_ago() -> None:
    found = [ago(seconds) for seconds in (-5, 59, 61, 7300, 90000, 86400 * 40, 86400 * 800)]
    assert found == ["just now", "just now", "1 minute ago", "2 hours ago", "1 day ago",
                     "1 month ago", "2 years ago"]  # fmt: skip
