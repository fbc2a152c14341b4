"""Device profiles: those that come along, files of one's own, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec
import pytest
from edgert.devices import load
from edgert.devices.profile import (
    INSTRUCTIONS,
    Figure,
    Measured,
    Mode,
    Product,
    Profile,
    Rates,
    figures,
)
from edgert.kernels import isa

from edgert.errors import DeviceError
from edgert.forecast.rates import product_of, rates_of

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


def rates(**changes: Any) -> dict[str, Any]:
    """What is other in what a probe found."""
    return {"rates": (msgspec.structs.replace(measured().rates[0], **changes),)}


def product(**changes: Any) -> dict[str, Any]:
    return rates(products=(msgspec.structs.replace(measured().rates[0].products[0], **changes),))


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


def test_a_power_mode_has_nothing_that_was_measured_without_it(tmp_path: Path) -> None:
    """A probe measures the profile's own mode; of others the roofline tells, with a wider band."""
    slow = Mode(Figure(3.0, "valve"), bandwidth=Figure(1e8, "valve"), int8_ops=Figure(1e9, "valve"))
    profile = msgspec.structs.replace(
        load.load("steam-deck"), measured=measured(), modes={"slow": slow}
    )
    path = tmp_path / "here.toml"
    path.write_text(load.to_toml(profile), encoding="utf-8")
    own, found = load.load(str(path)), load.load(f"{path}@slow")
    assert (own.spread, found.spread) == (0.1, 0.35)
    assert rates_of(own).read[0][1] == 5e10
    assert rates_of(found).read[0][1] == pytest.approx(1e8 * own.roofline.eta_bandwidth.value)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text_of("steam-deck").replace('"steam-deck"', '"mine"'), encoding="utf-8")
    assert load.load(str(path)).name == "mine"
    assert load.load(f"{path}@4w").mode == "4w"


def test_an_at_in_a_path_is_part_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "a@b"
    folder.mkdir()
    for name in ("here.toml", "my@board.toml", "plain"):
        (folder / name).write_text(text_of("steam-deck"), encoding="utf-8")
        assert load.load(str(folder / name)).mode == ""
        assert load.load(f"{folder / name}@4w").mode == "4w"
    with pytest.raises(DeviceError, match="has no power mode 'c'"):
        load.load(f"{folder / 'here.toml'}@c")
    with pytest.raises(DeviceError, match="no device 'steam-deck@4w'"):
        load.load("steam-deck@4w@15w")


def test_a_byte_order_mark_is_none_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "here.toml"
    path.write_text(text_of("steam-deck"), encoding="utf-8-sig")
    assert load.load(str(path)) == load.load("steam-deck")


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
        (
            'name = "steam-deck"',
            'name = "a\\u001b[31m"',
            r"name is 'a\\x1b\[31m', expected 1 to 200",
        ),
        ('name = "steam-deck"', 'name = ""', "name is '', expected"),
        ('name = "steam-deck"', 'name = "a\\nb"', r"name is 'a\\nb', expected"),
        ('name = "4 x AMD Zen 2"', 'name = "a\\u0007"', "cpu.name is"),
        ("[modes.4w]", '[modes."a\\u0007"]', "the name of a mode is"),
        ("schema = 1", 'schema = 1\nmode = "9w"', "mode is '9w', which"),
        ("value = 4.0", "value = 0.2", "cpu.cores is 0.2, expected 1 to 4096"),
        ("value = 4.0", "value = 1e9", "cpu.cores is 1000000000.0, expected"),
        ('"AMD Custom APU 0405"', '""', "match.names has an empty text"),
        ("max_batch = ", "max_batch = -", "providers.cpu has bits .* max_batch -"),
        ("bits = [2", "bits = [99", r"providers.cpu has bits \[99"),
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
        ({"pace": math.inf}, "measured.pace is inf"),
        ({"drift": -1.0}, "measured.drift is -1.0"),
        ({"busy_cores": math.nan}, "measured.busy_cores is nan"),
        ({"isa": "sse2"}, "measured.isa is 'sse2', expected one of"),
        ({"rates": measured().rates * 2}, "two tables for one number of threads"),
        (rates(launch_s=0.0), "has launch_s 0.0, which is not finite and positive"),
        (rates(attend_row_ops_s=math.inf), "has attend_row_ops_s inf"),
        (rates(threads=0), "of 0 threads is for none, expected 1 to 4096"),
        (rates(threads=10**6), "expected 1 to 4096"),
        (rates(read=()), "lacks read"),
        (rates(read=((1e6, 5e10), (1e6, 4e10))), "has in read sizes that do not rise"),
        (rates(attend_read=((0.0, 0.0), (-5.0, -1.0))), "has in attend_read a number that is not"),
        (rates(attend_read=((1e6, math.nan),)), "has in attend_read a number that is not"),
        (rates(attend_read=((2e6, 1e9), (1e6, 1e9))), "has in attend_read sizes that do not rise"),
        (product(ops_s=-1.0), "has ops_s of 'int4' -1.0"),
        (product(out_s=math.nan), "has an out_s"),
        (product(decode=((1e9, 1e10), (1e6, 4e10))), "has in decode of 'int4' sizes that do not"),
        (product(decode=((1e6, -4e10),)), "has in decode of 'int4' a number that is not"),
    ],
)
def test_rates_are_checked(change: dict[str, object], said: str) -> None:
    wrong = msgspec.structs.replace(measured(), **change)
    profile: Profile = msgspec.structs.replace(load.load("steam-deck"), measured=wrong)
    with pytest.raises(DeviceError, match=said):
        load.parse(load.to_toml(profile).encode(), "here")


def test_rates_of_pictures_alone_say_nothing_of_weights() -> None:
    drawn = product(kernel="conv_f16")["rates"][0]
    assert product_of(drawn, "conv_f32").kernel == "conv_f16"
    with pytest.raises(DeviceError, match="2 threads have no product with weights, only"):
        product_of(drawn, "int4")


@pytest.mark.parametrize(
    "data",
    [b"\xff\xfe", b"a = " + b"[" * 5000, b"x" * ((1 << 20) + 1), b"", b"a = 1\na = 2"],
    ids=["utf-16", "deep", "large", "empty", "twice"],
)
def test_bytes_that_are_no_profile(data: bytes) -> None:
    with pytest.raises(DeviceError, match="is no device profile"):
        load.parse(data, "here")
