"""Pipelines by hub id: only files that are needed are fetched, through the hub's own client."""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from unittest import mock

import pytest
from edgert.converters.convert import convert
from edgert.converters.sources import diffusers_hub
from edgert.converters.sources.diffusers_hub import recognises

from edgert.bundle import Bundle
from edgert.errors import ConvertError
from tests.image import pipelines

pytest.importorskip("diffusers")


class Hub:
    """A client of a hub that holds one repository, `folder`."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.fetched: list[str] = []
        self.fails = False

    def hf_hub_download(self, repo: str, name: str, revision: str | None = None) -> str:
        if repo != "org/pictures" or not (self.folder / name).is_file():
            raise FileNotFoundError(name)
        return self._fetch(name)

    def list_repo_files(self, repo: str, revision: str | None = None) -> list[str]:
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return [path.relative_to(self.folder).as_posix() for path in files]

    def snapshot_download(
        self, repo: str, revision: str | None = None, allow_patterns: object = None
    ) -> str:
        if self.fails:
            raise OSError("the line is down")
        assert isinstance(allow_patterns, list)
        for name in allow_patterns:
            self._fetch(name)
        return str(self.cache)

    def _fetch(self, name: str) -> str:
        self.fetched.append(name)
        target = self.cache / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.folder / name, target)
        return str(target)

    def client(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            hf_hub_download=self.hf_hub_download, snapshot_download=self.snapshot_download,
            HfApi=lambda: self,
        )  # fmt: skip


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(diffusers_hub, "cache_only", lambda: "")
    pipelines.write_pixart(tmp_path / "repo", max_shard_size="20KB")
    for name in ("text_encoder/pytorch_model.bin", "transformer/own.py", "extra/x.safetensors",
                 "v1.safetensors", "text_encoder/model.fp16.safetensors"):  # fmt: skip
        (tmp_path / "repo" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "repo" / name).write_bytes(b"?")
    (tmp_path / "repo/README.md").write_text("a card")
    return Hub(tmp_path / "repo", tmp_path / "cache")


def test_only_needed_files_of_a_hub_id_are_fetched(hub: Hub, tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"huggingface_hub": hub.client()}):
        report = convert("org/pictures", tmp_path / "x.edge", quant="f16", progress=False)
    assert report.name == "pictures"
    got = set(hub.fetched)
    unwanted = (".bin", ".py", "fp16.safetensors", "v1.safetensors", "extra/x.safetensors")
    assert not [name for name in got if name.endswith(unwanted)]
    assert {"README.md", "text_encoder/model.safetensors", "tokenizer/tokenizer.json"} <= got
    assert len([name for name in got if name.startswith("transformer/diffusion")]) > 2
    with Bundle.open(tmp_path / "x.edge") as bundle:
        assert bundle.manifest.provenance.command.startswith("edgert convert org/pictures -o")


def test_a_broken_download_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.fails = True
    with (
        mock.patch.dict(sys.modules, {"huggingface_hub": hub.client()}),
        pytest.raises(ConvertError, match="could not be downloaded: OSError: the line is down"),
    ):
        convert("org/pictures", tmp_path / "x.edge", progress=False)


def test_other_repositories_are_left_to_other_sources(hub: Hub, tmp_path: Path) -> None:
    with mock.patch.dict(sys.modules, {"huggingface_hub": hub.client()}):
        assert recognises("org/pictures")
        assert recognises("org/pictures@main")
        assert not recognises("org/texts")
        assert not recognises("pictures")
    assert not recognises(tmp_path / "nowhere")
    assert not recognises(tmp_path)
