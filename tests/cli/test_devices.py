"""`edgert devices`: lists, shows and probes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from edgert.devices.load import load, names, to_toml

from edgert.machine import probe

from ..devices.test_profiles import measured
from .conftest import Edgert


def test_all_profiles_are_listed(edgert: Edgert) -> None:
    ran = edgert("devices", "list")
    assert [line.split()[0] for line in ran.out.splitlines()] == names()
    found = edgert("devices", "list", "--json").json
    assert [row["name"] for row in found["devices"]] == names()


def test_a_profile_is_shown_with_its_sources(edgert: Edgert) -> None:
    ran = edgert("devices", "show", "jetson-orin-nano-8gb@25w")
    assert "memory.bandwidth" in ran.out
    assert "102.00 GB/s" in ran.out
    assert all(text in ran.out for text in load("jetson-orin-nano-8gb").sources.values())
    found = edgert("devices", "show", "steam-deck", "--json").json
    assert found["profile"]["memory"]["bandwidth"]["value"] == 8.8e10


def test_texts_of_a_profile_cannot_steer_a_terminal(edgert: Edgert, tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    text = to_toml(
        msgspec.structs.replace(load("steam-deck"), notes="a\x1b[2Jb\nmemory.total 1 TB")
    )
    text = text.replace("valve =", '"v\\u0007\\n" =').replace('"valve"', '"v\\u0007\\n"')
    path.write_text(text, encoding="utf-8")
    out = edgert("devices", "show", path).out
    assert not {c for c in out if not c.isprintable()} - {"\n"}
    assert "a\\x1b[2Jb\\nmemory.total 1 TB" in out
    assert "[v\\x07\\n]" in out


def test_an_unknown_device_is_an_error(edgert: Edgert) -> None:
    ran = edgert("devices", "show", "steam-dek", "--json")
    assert (ran.code, ran.json["error"]["code"]) == (2, "device-name")


def test_probe_writes_what_show_reads(
    edgert: Edgert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe.Looks, "look", lambda self, progress: progress("a run", 0.5))
    monkeypatch.setattr(probe.Looks, "rates", lambda self: ([measured(1).rates[0]], 0.12))
    monkeypatch.setattr(probe, "own_process", lambda threads, cpu: (8e7, 1.0))
    monkeypatch.setattr(probe, "storage_read", lambda: 1e9)
    out = tmp_path / "here.toml"
    ran = edgert("devices", "probe", "-o", out, "--name", "here", "--quick")
    assert (ran.code, ran.out) == (0, "")
    assert load(str(out)).spread == 0.12
    assert "predictions deviate by 12%" in edgert("devices", "show", out).out


def test_a_probe_of_an_unknown_encoding_is_refused(edgert: Edgert) -> None:
    ran = edgert("devices", "probe", "--encoding", "int9")
    assert (ran.code, "encoding 'int9' cannot be probed" in ran.err) == (2, True)
