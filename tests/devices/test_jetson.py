"""`edgert.devices.jetson` on fake root directories: good, slow and old boards, and no Jetson."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from edgert.devices.jetson import fastest, look, watts

CONF = """
< PM_CONFIG DEFAULT=1 >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
"""
ORIN = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, "
    "EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n",
    "etc/nvpmodel.conf": CONF,
    "var/lib/nvpmodel/status": "pmode:0002",
    "proc/meminfo": "MemTotal:        7802480 kB\nMemAvailable:    6000000 kB\nSwapTotal: 0 kB\n",
    "sys/devices/system/cpu/online": "0-5\n",
    "sys/devices/system/cpu/present": "0-5\n",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
    "sys/devices/system/cpu/cpu0/cpufreq/cpuinfo_max_freq": "1728000\n",
    "sys/class/devfreq/17000000.gpu/max_freq": "1020000000\n",
    "sys/class/devfreq/17000000.gpu/available_frequencies": "306000000 612000000 1020000000\n",
    "sys/class/thermal/thermal_zone0/temp": "48500\n",
    "sys/class/thermal/thermal_zone1/temp": "51250\n",
    "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
}
GPU = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


def plant(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_a_well_kept_board(tmp_path: Path) -> None:
    board = look(plant(tmp_path, ORIN), providers=GPU)
    assert board is not None
    assert board.problems == []
    assert board.model.startswith("NVIDIA Jetson Orin Nano")
    assert (board.l4t, board.jetpack, board.cuda) == ("36.4.3", "6.1 or 6.2", "12.6.68")
    assert (board.power_mode, board.power_modes[2]) == ("MAXN_SUPER", "MAXN_SUPER")
    assert (board.cores_online, board.cores_present) == (6, 6)
    assert board.gpu_hz == (1_020_000_000, 1_020_000_000)
    assert board.cpu_hz == (1_728_000_000, 1_728_000_000)
    assert (board.memory, board.swap) == (7802480 * 1024, 0)
    assert board.temperature == pytest.approx(51.25)


@pytest.mark.parametrize(
    ("change", "says", "hint"),
    [
        ({"var/lib/nvpmodel/status": "pmode:0000"}, "power mode 15W", "nvpmodel -m 2"),
        ({"var/lib/nvpmodel/status": ""}, "power mode 25W, the fastest is MAXN_SUPER", "nvpmodel"),
        ({"sys/devices/system/cpu/online": "0-1,4"}, "3 of 6 cores", "nvpmodel -m 2"),
        (
            {"sys/class/devfreq/17000000.gpu/max_freq": "612000000"},
            "GPU limited to 612 of 1020 MHz",
            "jetson_clocks",
        ),
        (
            {"sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1036800"},
            "CPU limited to 1037 of 1728 MHz",
            "jetson_clocks",
        ),
        ({"sys/class/thermal/thermal_zone1/temp": "91000"}, "91 °C", "air"),
        ({"usr/local/cuda/version.json": "{}"}, "no CUDA", "nvidia-jetpack"),
        (
            {"etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 1"},
            "L4T 35.4.1 (JetPack 5) has Python 3.8",
            "flash JetPack 6",
        ),
    ],
)
def test_what_is_wrong_is_told(
    change: dict[str, str], says: str, hint: str, tmp_path: Path
) -> None:
    board = look(plant(tmp_path, {**ORIN, **change}), providers=GPU)
    assert board is not None
    assert len(board.problems) == 1, board.problems
    assert says in board.problems[0].message
    assert hint in board.problems[0].hint


@pytest.mark.parametrize(
    ("modes", "number"),
    [
        ({}, None),
        ({0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"}, 0),  # AGX Orin
        ({0: "15W", 1: "25W", 2: "MAXN_SUPER", 3: "7W"}, 2),  # Orin Nano Super
        ({0: "MAXN", 1: "15W", 2: "MAXN_SUPER"}, 2),
        ({0: "15W", 1: "7W"}, 0),  # Orin Nano
        ({0: "120W", 1: "MAXN"}, 1),
        ({3: "fast", 4: "slow"}, 3),
    ],
)
def test_the_fastest_mode_is_found_by_name(modes: dict[int, str], number: int | None) -> None:
    assert fastest(modes) == number


def test_the_wheel_for_this_jetpack_is_named(tmp_path: Path) -> None:
    board = look(plant(tmp_path, ORIN), providers=["CPUExecutionProvider"])
    assert board is not None
    (problem,) = board.problems
    assert "CUDAExecutionProvider" in problem.message
    assert "jp6/cu126" in problem.hint


def test_other_machines_are_no_jetson(tmp_path: Path) -> None:
    assert look(tmp_path) is None
    assert look(plant(tmp_path, {"proc/device-tree/model": "Raspberry Pi 5 Model B\0"})) is None


def test_files_that_make_no_sense(tmp_path: Path) -> None:
    board = look(
        plant(
            tmp_path,
            {name: "\x00garbage" for name in ORIN} | {"proc/device-tree/model": "NVIDIA Jetson\0"},
        )
    )
    assert board is not None
    assert (board.l4t, board.power_mode, board.gpu_hz, board.temperature) == ("", None, None, None)


def test_watts_are_those_of_the_board_s_rail(tmp_path: Path) -> None:
    assert watts(tmp_path) is None
    folder = tmp_path / "sys/class/hwmon/hwmon1"
    folder.mkdir(parents=True)
    for number, name, volts, amperes in ((1, "VDD_IN", 5000, 2400), (2, "VDD_CPU", 4000, 100)):
        (folder / f"in{number}_label").write_text(f"{name}\n")
        (folder / f"in{number}_input").write_text(f"{volts}\n")
        (folder / f"curr{number}_input").write_text(f"{amperes}\n")
    assert watts(tmp_path) == 12.0
