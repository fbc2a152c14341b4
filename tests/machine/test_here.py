"""Whether this machine is the device of a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgert.devices.load import load
from edgert.devices.profile import Figure, Match, Mode, Profile

from edgert import system_memory
from edgert.budget.limits import Limit
from edgert.budget.report import Report, Verdict, junit, lines
from edgert.budget.run import Ask, run
from edgert.errors import DeviceError
from edgert.machine import here

replace = msgspec.structs.replace


class Machine:
    """Another machine, as the system would tell of it."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch, gigabytes: float, cores: int) -> None:
        self.root = root
        memory = system_memory.Memory(int(gigabytes * 1e9), int(1e9))
        patch.setattr(system_memory, "machine", lambda: memory)
        patch.setattr(here, "performance_cores", lambda: list(range(cores)))
        patch.setattr(here, "available_cores", lambda: list(range(2 * cores)))
        self.write(str(here.TOPOLOGY), "0")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def said(self, profile: Profile) -> str:
        return "; ".join(here.differences(profile, self.root))


@pytest.fixture
def pi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A Raspberry Pi 5 of 8 GB."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    machine = Machine(tmp_path, monkeypatch, 8.46, 4)
    machine.write("proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    return machine


@pytest.fixture
def orin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A Jetson AGX Orin of 64 GB in its mode of 30 W."""
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    machine = Machine(tmp_path, monkeypatch, 65.9, 8)
    machine.write("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    modes = ("MAXN", "15W", "30W", "50W")
    conf = "\n".join(f"< POWER_MODEL ID={i} NAME={name} >" for i, name in enumerate(modes))
    machine.write("etc/nvpmodel.conf", conf)
    machine.write("var/lib/nvpmodel/status", "pmode:0002")
    return machine


def test_two_boards_of_one_name_differ_in_memory(pi: Machine) -> None:
    assert pi.said(load("raspberry-pi-5-8gb")) == ""
    said = pi.said(load("raspberry-pi-5-16gb"))
    assert said == "it has 8.46 GB of memory, expected 16 within 15%"


def test_another_board_is_named(pi: Machine) -> None:
    said = pi.said(load("jetson-orin-nano-8gb"))
    assert said.startswith("its name is 'Raspberry Pi 5 Model B Rev 1.0, ")
    assert "expected 'Jetson Orin Nano' in it; 4 of its cores are in use, expected 6" in said
    assert pi.said(load("steam-deck")).startswith("its processor is aarch64, expected x86_64")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"cores": 96.0}, "4 of its cores are in use, expected 96"),
        ({"cores": 3.0}, "4 of its cores are in use, expected 3"),
        ({"total": 4e12}, "it has 8.46 GB of memory, expected 4000 within 15%"),
        ({"total": 8.46e9 * 1.14}, ""),
        ({"total": 8.46e9 / 1.14}, ""),
    ],
)
def test_cores_and_memory_are_compared(pi: Machine, changes: dict[str, float], said: str) -> None:
    profile = load("raspberry-pi-5-8gb")
    figures = {name: Figure(value, "brief") for name, value in changes.items()}
    cpu = {name: figure for name, figure in figures.items() if name == "cores"}
    memory = {name: figure for name, figure in figures.items() if name == "total"}
    profile = replace(
        profile, cpu=replace(profile.cpu, **cpu), memory=replace(profile.memory, **memory)
    )
    assert pi.said(profile) == said
    assert pi.said(replace(profile, match=Match())) == said


def test_where_cores_are_not_told_apart_enough_of_any_will_do(pi: Machine) -> None:
    """macOS and Windows: 8 cores, of which a profile counts the fast ones."""
    (pi.root / here.TOPOLOGY).unlink()
    profile = load("raspberry-pi-5-8gb")
    for cores, said in ((2.0, ""), (8.0, ""), (9.0, "4 of its cores are in use, expected 9")):
        cpu = replace(profile.cpu, cores=Figure(cores, "brief"))
        assert pi.said(replace(profile, cpu=cpu)) == said


def test_a_power_mode_is_compared_where_the_system_tells_it(orin: Machine) -> None:
    low, high = load("jetson-agx-orin-64gb@30w"), load("jetson-agx-orin-64gb@60w")
    assert orin.said(low) == ""
    assert here.power_mode(low, orin.root) == "30W"
    said = orin.said(high)
    assert said.endswith("8 of its cores are in use, expected 12; its power mode is 30W, "
                         "expected one of 60 W")  # fmt: skip
    assert here.power_mode(load("jetson-agx-orin-64gb"), orin.root) == ""
    orin.write("var/lib/nvpmodel/status", "pmode:0000")
    assert (orin.said(low), here.power_mode(low, orin.root)) == ("", here.UNCHECKED)


def this(**changes: Any) -> Profile:
    """A profile of the machine that runs the tests."""
    profile = load("steam-deck")
    cores, total = len(here.performance_cores()), float(system_memory.machine().total)
    return replace(
        profile, match=Match(), cpu=replace(profile.cpu, cores=Figure(float(cores), "valve")),
        memory=replace(profile.memory, total=Figure(total, "valve")), **changes,
    )  # fmt: skip


def test_this_machine_is_none_of_the_boards() -> None:
    assert here.is_here(this())
    assert not here.is_here(load("jetson-orin-nano-8gb"))
    assert not here.is_here(load("laptop-avx2"))  # a class of machines


def test_a_mode_that_no_system_tells_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "_system_mode", lambda root: None)
    profile = this(modes={"300w": Mode(Figure(300.0, "valve"))}).in_mode("300w")
    assert here.differences(profile) == []
    assert here.power_mode(profile) == "not checked"
    verdict = Verdict("load_s", 1.0, "s", "pass", "measured", value=0.5)
    report = Report(1, "a.edge", profile.label, (verdict,), 1.0, {"power_mode": "not checked"})
    assert lines(report)[-1].endswith("measured, power mode not checked")
    assert b'<property name="power_mode" value="not checked" />' in junit(report)


def test_a_run_says_what_was_found_and_expected() -> None:
    with pytest.raises(DeviceError, match=r"is not raspberry-pi-5-16gb .*; it has .*") as raised:
        run(Path("none.edge"), [Limit("load_s", 1.0)], Ask(device="raspberry-pi-5-16gb"))
    assert raised.value.code == "device-elsewhere"
