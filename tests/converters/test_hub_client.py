"""The hub's client without a network: found out in a moment, told in words, silent itself."""

from __future__ import annotations

import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from edgert.converters.sources import hub_client
from edgert.converters.sources.diffusers_hub import pipeline_folder, recognises
from edgert.converters.sources.hub import local_folder
from edgert.converters.sources.hub_client import cache_only, meaning, quiet

from edgert.errors import ConvertError

VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HTTP_PROXY", "HTTPS_PROXY",
             "ALL_PROXY", "NO_PROXY")  # fmt: skip


@pytest.fixture(autouse=True)
def nobodys_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(hub_client, "_asked", {})


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> str:
    """The address of a hub that nobody answers at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", url)
    return url


def test_a_hub_that_nobody_answers_at_is_told_in_a_moment(nobody: str) -> None:
    client = pytest.importorskip("huggingface_hub")
    assert client
    start = time.perf_counter()
    assert not recognises("some/other")
    for opened in (local_folder, pipeline_folder):
        with pytest.raises(ConvertError) as caught:
            opened("some/other")
        assert caught.value.code == "download"
        assert "could not be downloaded: 127.0.0.1 cannot be reached, and" in caught.value.message
        assert "give its path" in caught.value.hint
    assert time.perf_counter() - start < 5


def test_a_hub_that_answers_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert cache_only() == ""


def test_a_name_that_is_looked_up_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def hang(address: Any, timeout: float) -> Any:
        calls.append(address)
        time.sleep(2)
        raise OSError

    monkeypatch.setattr(socket, "create_connection", hang)
    monkeypatch.setattr(hub_client, "PATIENCE", 0.1)
    start = time.perf_counter()
    assert [cache_only() for _ in range(3)] == ["huggingface.co cannot be reached"] * 3
    assert time.perf_counter() - start < 1.5
    assert calls == [("huggingface.co", 443)], "asked once in a while, not for each file"


@pytest.mark.parametrize(
    ("given", "said"),
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"),
     ({"HF_HUB_OFFLINE": "yes"}, "HF_HUB_OFFLINE is set"),
     ({"TRANSFORMERS_OFFLINE": "ON"}, "TRANSFORMERS_OFFLINE is set"),
     ({"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "1"}, ""),
     ({"HF_HUB_OFFLINE": ""}, ""), ({}, "")],
)  # fmt: skip
def test_variables_of_the_client_count(
    given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_client, "_connects", lambda host, port: True)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert cache_only() == said


@pytest.mark.parametrize(
    ("given", "address"),
    [({}, ("huggingface.co", 443)),
     ({"HF_ENDPOINT": "http://mirror.example:8080/hf"}, ("mirror.example", 8080)),
     ({"https_proxy": "http://proxy.example:3128"}, ("proxy.example", 3128)),
     ({"https_proxy": "proxy.example"}, ("proxy.example", 80)),
     ({"all_proxy": "socks5://proxy.example"}, ("proxy.example", 1080)),
     ({"https_proxy": "http://proxy.example", "no_proxy": "huggingface.co"},
      ("huggingface.co", 443)),
     ({"HF_ENDPOINT": "http://[::1"}, ("", 0)), ({"HF_ENDPOINT": "https://x:99999"}, ("", 0))],
)  # fmt: skip
def test_what_is_connected_to(
    given: dict[str, str], address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    url = os.environ.get("HF_ENDPOINT", hub_client.ENDPOINT)
    assert hub_client._address(url) == address


def test_errors_of_the_client_in_words() -> None:
    class RepositoryNotFoundError(Exception):
        pass

    class GatedRepoError(RepositoryNotFoundError):
        pass

    assert meaning(GatedRepoError("403"), "").startswith("it is gated")
    assert meaning(RepositoryNotFoundError("401\n\nlong"), "").endswith("or it is private")
    assert meaning(ValueError("x" * 999), "") == f"ValueError: {'x' * 300}"
    assert meaning(GatedRepoError(), "X is set").startswith("X is set, and the cache of the hub's")


def test_the_client_is_silent_unless_somebody_asked_for_more() -> None:
    client = logging.getLogger("huggingface_hub")
    before = client.level
    try:
        for level, shown in ((logging.WARNING, False), (logging.INFO, True)):
            client.setLevel(level)
            with quiet():
                assert client.isEnabledFor(logging.WARNING) is shown
                assert client.isEnabledFor(logging.ERROR)
            assert client.level == level
    finally:
        client.setLevel(before)


def test_a_pipeline_in_the_cache_needs_no_network(
    nobody: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    snapshot = tmp_path / "models--org--pictures" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "models--org--pictures" / "refs").mkdir()
    (tmp_path / "models--org--pictures" / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert recognises("org/pictures")
    assert pipeline_folder("org/pictures") == snapshot
