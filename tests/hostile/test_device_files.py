"""Files of devices, budgets, workloads, cards, tables, baselines and cues, damaged at random: each
reader ends with its own error or a value, never with another exception."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from edgert.devices import load

from edgert.budget.limits import budget_of, read_budget, read_toml
from edgert.budget.report import Report, Verdict, read_report
from edgert.errors import EdgertError
from edgert.planning.cards import SMOLLM2, read_cards, workload_of
from edgert.planning.drawings import read_rows
from edgert.scaling.table import read_table
from edgert.text.relay_cues import CueScore, RelayCues, read_cues

from ..devices.test_profiles import measured

BUDGET = b"p90_token_ms = { 0 = 25, 4096 = 40 }\npeak_mb = 600\n"
WORKLOAD = b"prompt_tokens = 100\nnew_tokens = 20\ntok_budget_s = 0.05\ncontext = 512\n"
PICTURES = b'[[picture]]\nmodel = "a"\nsteps = 28\nnfe = 14.0\nscore = 0.97\nguidance = 3.5\n' * 3
TABLE = (
    b"model_id,base_id,released,params,pretrain_tokens,post_trained,gpqa\n"
    b"a,x,2024-05-01,7e9,2e12,true,0.3\nb,x,2024-06-01,7e9,2e12,false,0.2\n"
)
PROFILE = load.to_toml(
    msgspec.structs.replace(load.load("steam-deck"), measured=measured())
).encode()
CARD = "[[model]]\n" + "\n".join(
    f"{k} = {json.dumps(v)}" for k, v in msgspec.to_builtins(SMOLLM2[0]).items()
    if v is not None and v != {}
)  # fmt: skip
REPORT = json.dumps(
    Report(1, "b", "here", (Verdict("peak_mb", 1.0, "MB", "pass", "measured"),), 1.0).to_dict()
)
SCORES = (CueScore("Now", 5, 9, 0.9, 0.4, 0.1), CueScore("So ", 1, 2, 0.9, 0.4))
CUES = RelayCues(cues=("Now", "So "), large="a", small="b", traces=2, tokens=9, scores=SCORES)
READERS: dict[str, tuple[bytes, Callable[[Path], object]]] = {
    "profile": (PROFILE, load.read),
    "budget": (BUDGET, read_budget),
    "workload": (WORKLOAD, lambda path: workload_of(read_toml(path, "workload"))),
    "cards": (CARD.encode(), read_cards),
    "pictures": (PICTURES, read_rows),
    "table": (TABLE, read_table),
    "report": (REPORT.encode(), read_report),
    "relay cues": (msgspec.json.encode(CUES), read_cues),
}
BITS = (b"[", b"]", b"{", b"}", b'"', b"=", b"\n", b"\x00", b"\xff", b"-", b"e999", b"nan", b"inf",
        b"9" * 400, b"'''", b"true", b"0x" + b"f" * 5000, b"[[a]]\n", b",,",
        b"\xed\xa0\x80")  # fmt: skip


def damaged(data: bytes, chance: random.Random) -> bytes:
    """The data with a few bytes cut, doubled, or replaced by what parsers dislike."""
    for _ in range(chance.randint(1, 3)):
        at, to = sorted(chance.randint(0, len(data)) for _ in range(2))
        piece = chance.choice((b"", data[at:to] * 2, chance.choice(BITS), chance.randbytes(2)))
        short = min(to, at + chance.randint(0, 12))
        data = data[:at] + piece + data[short:]
    return data


@pytest.mark.parametrize("kind", list(READERS))
def test_damage_ends_in_an_error_of_ours(tmp_path: Path, kind: str) -> None:
    data, read = READERS[kind]
    path = tmp_path / "file"
    path.write_bytes(data)
    read(path)  # as it is, it is read
    chance, refused = random.Random(kind), 0
    for _ in range(250):
        path.write_bytes(damaged(data, chance))
        try:
            read(path)
        except EdgertError as error:
            refused += bool(error.code) and len(error.message) < 4200
    assert refused > 50


@pytest.mark.parametrize("kind", list(READERS))
def test_a_folder_and_an_absent_file_are_errors_of_ours(tmp_path: Path, kind: str) -> None:
    read = READERS[kind][1]
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(EdgertError, match="expected"):
            read(path)


def test_keywords_of_any_kind() -> None:
    for value in (None, [], {}, {"a": {}}, object(), 10**400, -0.0):
        with pytest.raises(EdgertError):
            budget_of({"p90_token_ms": value})


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e308])
def test_numbers_of_any_size(tmp_path: Path, value: float) -> None:
    text = CARD.replace("tokens = 2000000000000.0", f"tokens = {value}")
    (tmp_path / "cards.toml").write_text(text, encoding="utf-8")
    with pytest.raises(EdgertError):
        read_cards(tmp_path / "cards.toml")
    for name in ("tok_budget_s", "prompt_tokens"):
        with pytest.raises(EdgertError):
            workload_of({name: value if name == "prompt_tokens" else -value})
