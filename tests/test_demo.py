"""The shipped model: converted once, found again, safe where nothing can be written."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import edgert
from edgert import demo
from edgert.errors import ResourceError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Conversions on NumPy, and a list of those that happened."""
    from edgert.converters import convert as module

    made: list[Path] = []
    before = module.convert

    def counted(source: Path, out: Path, **options: object) -> object:
        made.append(out)
        return before(source, out, **{**options, "golden": False})  # type: ignore[arg-type]

    monkeypatch.setattr(module, "convert", counted)
    return made


def test_the_bundle_is_made_once(
    cache: Path, monkeypatch: pytest.MonkeyPatch, quick: list[Path]
) -> None:
    monkeypatch.setenv("EDGERT_CACHE", str(cache))
    told: list[str] = []
    path = demo.demo_bundle(progress=told.append)
    assert path.parent == cache / "demo"
    assert demo.demo_bundle(progress=told.append) == path
    assert (len(quick), len(told)) == (1, 1)
    assert str(path) in told[0]
    with edgert.load(path, device="reference") as model:
        assert model.name == demo.NAME
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_two_that_make_it_at_once_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: list[Path]
) -> None:
    monkeypatch.setenv("EDGERT_CACHE", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: demo.demo_bundle(), range(2))
    assert first == second
    assert [entry.name for entry in first.parent.iterdir()] == [first.name]


def test_another_version_makes_another_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    before = demo.demo_bundle_path()
    monkeypatch.setattr(edgert, "__version__", "99")
    assert demo.demo_bundle_path() != before


def test_without_a_cache_it_lives_as_long_as_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    code = (
        "import edgert.converters.convert as c, functools\n"
        "c.convert = functools.partial(c.convert, golden=False)\n"
        "from edgert.demo import demo_bundle\n"
        "print(demo_bundle())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"EDGERT_CACHE": str(tmp_path / "file" / "x"), "PATH": ""},
    )  # fmt: skip
    assert "cannot be written" in done.stderr
    assert not Path(done.stdout.strip()).exists()


def test_a_missing_checkpoint_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "NAME", "absent")
    with pytest.raises(ResourceError, match=r"expected config\.json"):
        demo.demo_checkpoint()


def test_the_verb_tells_a_story_and_what_to_type_next() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgert", "demo", "-n", "20"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(demo.PROMPT)
    assert len(done.stdout.split()) > 12
    for said in ("MB, bundle ", "to load it", "a second", "Type next:", "edgert generate -p"):
        assert said in done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "edgert", "demo", "-n", "3", "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert (found["schema"], len(found["token_ids"])) == (1, 3)
    assert found["bundle_bytes"] < found["checkpoint_bytes"]
