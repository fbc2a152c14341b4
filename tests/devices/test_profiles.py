"""Device profiles: those that come along, files of one's own, and what is refused."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from edgert.devices import load
from edgert.devices.profile import INSTRUCTIONS, Measured, Product, Profile, Rates, figures
from edgert.kernels import isa

from edgert.errors import DeviceError

WANTED = {
    "jetson-orin-nano-8gb", "jetson-orin-nx-16gb", "jetson-agx-orin-64gb", "jetson-agx-thor",
    "raspberry-pi-5-8gb", "raspberry-pi-5-16gb", "laptop-avx2", "laptop-avx512vnni", "apple-m2",
    "apple-m4", "snapdragon-x-elite", "steam-deck", "cloud-2vcpu",
}  # fmt: skip


def text_of(name: str) -> str:
    return (load.FOLDER / f"{name}.toml").read_text(encoding="utf-8")


def measured(threads: int = 2) -> Measured:
    """What a probe might have found, for tests."""
    product = Product("int4", ((1e6, 4e10), (1e9, 1e10)), 2e11)
    rates = Rates(threads, 2e-5, 1e-6, 1e-9, 1e9, 4e9, 1e10, 1e11, 2e11, ((1e6, 5e10),), (product,))
    return Measured("2026-01-01", "0.1.0", "avx2", "a CPU", 0.1, 9e7, (rates,))


def test_all_devices_are_there_under_their_names() -> None:
    assert set(load.names()) == WANTED
    for name in load.names():
        assert load.load(name).name == name


@pytest.mark.parametrize("name", sorted(WANTED))
def test_every_number_has_a_source_that_is_used(name: str) -> None:
    profile = load.load(name)
    found = dict(figures(profile))
    assert len(found) >= 12
    assert {figure.source for figure in found.values()} == set(profile.sources)
    assert all(len(text) > 20 for text in profile.sources.values())


def test_instruction_sets_are_those_of_the_kernels() -> None:
    assert set(INSTRUCTIONS) == set(isa.NEEDS)


@pytest.mark.parametrize("name", sorted(WANTED))
def test_toml_round_trips(name: str) -> None:
    profile = msgspec.structs.replace(load.load(name), measured=measured())
    assert load.parse(load.to_toml(profile).encode(), "here") == profile


def test_a_power_mode_changes_what_it_names() -> None:
    slow, fast = load.load("jetson-orin-nano-8gb"), load.load("jetson-orin-nano-8gb@25w")
    assert (slow.memory.bandwidth.value, fast.memory.bandwidth.value) == (68e9, 102e9)
    assert slow.memory.total == fast.memory.total
    assert fast.providers["cuda"].flops != slow.providers["cuda"].flops
    assert (slow.label, fast.label) == ("jetson-orin-nano-8gb", "jetson-orin-nano-8gb@25w")
    with pytest.raises(DeviceError, match=r"no power mode '90w', expected one of \['15w', '25w'\]"):
        load.load("jetson-orin-nano-8gb@90w")


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text_of("steam-deck").replace('"steam-deck"', '"mine"'), encoding="utf-8")
    assert load.load(str(path)).name == "mine"
    assert load.load(f"{path}@4w").mode == "4w"


def test_an_unknown_name_is_told_its_neighbour() -> None:
    with pytest.raises(DeviceError, match="no device 'jetson-orin-nan', expected one of") as raised:
        load.load("jetson-orin-nan")
    assert "did you mean 'jetson-orin-nano-8gb'?" in raised.value.hint
    with pytest.raises(DeviceError, match="expected a device profile"):
        load.load("no/such.toml")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "handheld"', 'kind = "phone"', "Invalid enum value 'phone'"),
        ('kind = "handheld"', 'kind = "handheld"\ncolour = 3', "unknown field `colour`"),
        ("schema = 1", "schema = 2", "schema is 2, expected 1"),
        ("value = 8.8e10", "value = -1.0", "memory.bandwidth is -1.0, expected more than 0"),
        ("value = 8.8e10", "value = nan", "memory.bandwidth is nan"),
        ("value = 8.8e10", "value = inf", "memory.bandwidth is inf"),
        ("value = 8.8e10", 'value = "much"', "Expected `float`, got `str`"),
        ('8.8e10, source = "valve"', '8.8e10, source = "me"', "source 'me', which"),
        ('8.8e10, source = "valve"', "8.8e10", "missing required field `source`"),
        ("value = 0.7", "value = 1.7", "roofline.eta_bandwidth is 1.7, expected a share"),
        ("value = 1.2e10", "value = 1.7e10", "memory.usable is more than memory.total"),
        ('isa = ["avx2"]', 'isa = ["sse2"]', r"cpu.isa has \['sse2'\]"),
        ("[providers.cpu]", "[providers.gpu]", "providers lacks cpu"),
        ("[storage]", "[storage", "is no device profile"),
    ],
)
def test_what_is_wrong_is_said(old: str, new: str, said: str) -> None:
    text = text_of("steam-deck")
    assert old in text
    with pytest.raises(DeviceError, match=said) as raised:
        load.parse(text.replace(old, new, 1).encode(), "here")
    assert raised.value.code == "device-profile"


def test_all_faults_come_at_once() -> None:
    text = text_of("steam-deck").replace("value = 8.8e10", "value = 0.0")
    text = text.replace("value = 0.7", "value = 7.0")
    with pytest.raises(DeviceError, match=r"memory.bandwidth is 0.0.*eta_bandwidth is 7.0"):
        load.parse(text.encode(), "here")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rates": ()}, "measured.rates is empty"),
        ({"spread": 0.0}, "measured.spread is 0.0"),
        ({"base_bytes": -1.0}, "measured.base_bytes is -1.0"),
        ({"pace": 0.0}, "measured.pace is 0.0"),
        ({"rates": (msgspec.structs.replace(measured().rates[0], launch_s=0.0),)}, "not finite"),
        ({"rates": (msgspec.structs.replace(measured().rates[0], read=()),)}, "lacks read"),
    ],
)
def test_rates_are_checked(change: dict[str, object], said: str) -> None:
    wrong = msgspec.structs.replace(measured(), **change)
    profile: Profile = msgspec.structs.replace(load.load("steam-deck"), measured=wrong)
    with pytest.raises(DeviceError, match=said):
        load.parse(load.to_toml(profile).encode(), "here")


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe", b"a = " + b"[" * 5000, b"x" * ((1 << 20) + 1), b"", b"a = 1\na = 2"],
    ids=["utf-16", "deep", "large", "empty", "twice"],
)
def test_bytes_that_are_no_profile(data: bytes) -> None:
    with pytest.raises(DeviceError, match="is no device profile"):
        load.parse(data, "here")
