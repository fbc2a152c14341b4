"""Tables of scores, and `edgert frontier fit`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgert.errors import RequestError
from edgert.scaling.fits import read_fit
from edgert.scaling.table import read_table

from ..cli.conftest import Edgert, edgert  # noqa: F401
from .board import leaderboard

HEAD = "model_id,base_id,released,params,pretrain_tokens,post_trained"


def write(path: Path, *lines: str, tasks: str = "gpqa") -> Path:
    path.write_text("\n".join([f"{HEAD},{tasks}", *lines]) + "\n", encoding="utf-8")
    return path


def test_rows_are_read_and_what_they_lack_is_counted(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv", "a,x,2024-05-01,7e9,2e12,true,31.5,0.2",
        "b,x,2024-08-01,7e9,2e12,true,,0.3", "c,y,2025-02-01,,2e12,false,50,0.4", tasks="gpqa,musr",
    )  # fmt: skip
    table = read_table(path)
    assert table.dropped == {"gpqa": 2, "musr": 1}
    assert table.rows[0].scores == {"gpqa": 0.315, "musr": 0.2}
    z, y, groups = table.points("musr")
    assert z == pytest.approx(np.log10([8.4e22] * 2))
    assert (y.tolist(), len(set(groups))) == ([0.2, 0.3], 1)
    assert [len(table.periods()[p]["musr"][0]) for p in ("P1", "P2", "P3", "P4")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a,x,2024-05-01,7e9,2e12,true,131", "line 2: gpqa is 131"),
        ("a,x,2024-05-01,7e9,2e12,true,-1", "line 2: gpqa is -1"),
        ("a,x,2024-05-01,7e9,2e12,true,nan", "gpqa is 'nan', expected a number"),
        ("a,x,soon,7e9,2e12,true,0.1", "released is 'soon', expected YYYY-MM-DD"),
        ("a,x,2024-05-01,0,2e12,true,0.1", "params is 0, expected more than 0"),
        ("a,x,2024-05-01,7e9,2e12,maybe,0.1", "post_trained is 'maybe'"),
        ("a,x", "line 2 has 2 fields, expected 7"),
        ("a,x,2024-05-01,7e9,2e12,true,0,42", "line 2 has 8 fields, expected 7: decimals"),
        ("a,x,2024-05-01,7e9,2e12,true,0.4,", "line 2 has 8 fields"),
        ("a,x,2024-05-01,7e9,2e12,true", "line 2 has 6 fields"),
        ('a,"x\n",2024-05-01,7e9,2e12,true,0.4\n\nb,x,2024-05-01,7e9,2e12,true,7,5', "line 5 has"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        read_table(write(tmp_path / "t.csv", line))


def test_rows_behind_the_last_period_are_counted(tmp_path: Path) -> None:
    days = ("2025-03-31", "2025-04-01", "2025-08-15")
    lines = [f"m{i},b,{day},7e9,2e12,true,0.4" for i, day in enumerate(days)]
    table = read_table(write(tmp_path / "t.csv", *lines))
    assert table.later() == 2
    assert [len(part["gpqa"][0]) for part in table.periods().values()] == [0, 0, 0, 1]


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a,b\n1,2\n", b"", HEAD.encode()])
def test_files_that_are_no_table(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    with pytest.raises(RequestError, match=r"t\.csv: "):
        read_table(path)


def test_the_verb_fits_a_table(edgert: Edgert, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("scipy")
    z, y, groups = leaderboard(0, 300)
    lines = [
        f"m{i},b{int(g)},2024-0{1 + 4 * (i % 2)}-15,1e9,{10 ** (a + 21) / 6e9:g},true,{b:.4f}"
        for i, (a, b, g) in enumerate(zip(z, y, groups, strict=True))
    ]
    path, out = write(tmp_path / "t.csv", *lines), tmp_path / "fit.json"
    ran = edgert("frontier", "fit", path, "--fast", "-o", out, "--evaluate", "--bootstrap", 3)
    assert ran.code == 0
    assert len(read_fit(out, "gpqa").draws) == 3
    assert ran.out.startswith("gpqa")
    fit = json.loads(out.read_text())["fits"]["gpqa"]
    assert fit["z_unit"] == "flops"
    assert 22 < fit["theta"][2] < 24
    ran = edgert("frontier", "fit", path, "--task", "maths")
    assert (ran.code, "has no task 'maths'" in ran.err) == (2, True)


def row(name: int, score: str, truth: str = "true", day: str = "2025-08-01") -> str:
    return f"m{name},b{name},{day},{name + 1}e9,2e12,{truth},{score}"


def test_a_thin_task_is_left_out_with_a_word(edgert: Edgert, tmp_path: Path) -> None:  # noqa: F811
    pytest.importorskip("scipy")
    lines = [row(i, f"0.{i + 1},{'0.5' if i < 2 else ''}") for i in range(8)]
    lines += [row(9, "0.9,0.9", "false")]
    path, out = write(tmp_path / "t.csv", *lines, tasks="gpqa,thin"), tmp_path / "fit.json"
    ran = edgert("frontier", "fit", path, "--fast", "--evaluate", "-o", out)
    assert ran.code == 0, ran.err
    assert "thin is left out: 2 post-trained models with all numbers, at 2 values" in ran.err
    assert "(1 base models and 6 rows" in ran.err
    assert "9 of 9 rows were released on 2025-04-01 or later" in ran.err
    found = json.loads(out.read_text())
    assert ([*found["fits"]], [*found["skipped"]]) == (["gpqa"], ["thin"])
    assert found["evaluation"]["later"] == 9
    ran = edgert("frontier", "fit", path, "--task", "thin")
    assert (ran.code, f"{path}: no task can be fitted: thin: 2 post-trained" in ran.err) == (
        2,
        True,
    )


def test_the_output_is_tried_before_the_work(edgert: Edgert, tmp_path: Path) -> None:  # noqa: F811
    ran = edgert("frontier", "fit", tmp_path / "none.csv", "-o", tmp_path / "no" / "fit.json")
    assert (ran.code, "could not be written" in ran.err) == (2, True)
