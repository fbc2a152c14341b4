"""What a device profile says: one TOML file a device, every number with its source.

    name = "raspberry-pi-5-8gb"
    [sources]
    brief = "Raspberry Pi 5 product brief, https://..."
    [memory]
    total = { value = 8.0e9, source = "brief" }

A figure is a value with the name of its source and what it rests on: `nominal` (a data sheet),
`measured` (somebody ran something), `estimate` (reasoned, by the sentence that its source is).
`Measured` is what a probe adds: rates of this machine's kernels, from which times are predicted.

Units: bytes, bytes a second, operations a second (a multiply-add is two), seconds, watts, hertz.
Unknown keys, missing figures, values out of range and sources that are not listed are faults; all
of them come in one error (`load.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import msgspec

SCHEMA = 1
Basis = Literal["nominal", "measured", "estimate"]
Kind = Literal["board", "laptop", "desktop", "handheld", "server"]
INSTRUCTIONS = ("avx512vnni", "avxvnni", "avx2", "i8mm", "dotprod", "portable")
LARGEST = 1e20  # of any figure
CORES = 4096
NAME = 200  # characters
SPREAD = 0.15  # deviation of ln(time) around a prediction from a probe that says nothing else
NOMINAL_SPREAD = 0.35  # the same where nothing was measured


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Unknown keys are errors."""


class Figure(_Strict, frozen=True):
    """A number and where it comes from: `source` is a key of the profile's sources."""

    value: float
    source: str
    basis: Basis = "nominal"


class Match(_Strict, frozen=True):
    """How the device itself is told from others: machine as `platform.machine` says it, and words
    of its board's or CPU's name; empty: not compared."""

    machine: str = ""
    names: tuple[str, ...] = ()


class Cpu(_Strict, frozen=True):
    """cores: those that sessions use by default, one a physical performance core. isa: instruction
    sets of `kernels/isa.py`, the best first. flops, int8_ops: peak of all these cores."""

    name: str
    cores: Figure
    clock_hz: Figure
    flops: Figure
    int8_ops: Figure
    isa: tuple[str, ...]


class Memory(_Strict, frozen=True):
    """usable: what a model may take beside the system."""

    total: Figure
    usable: Figure
    bandwidth: Figure


class Storage(_Strict, frozen=True):
    """size: what is free for models, at least; read: sequential."""

    size: Figure
    read: Figure


class Roofline(_Strict, frozen=True):
    """Shares of the peaks that kernels reach, and the least seconds that an instruction costs."""

    eta_bandwidth: Figure
    eta_compute: Figure
    launch_s: Figure


class Provider(_Strict, frozen=True):
    """Where to compute: "cpu", or one of onnxruntime's. bits: of weights it takes. flops: peak in
    half precision, not given for the CPU."""

    bits: tuple[int, ...]
    max_batch: int = 1
    flops: Figure | None = None


class Mode(_Strict, frozen=True):
    """A power mode: what is different from the profile itself, which is the mode without any and
    the one that a probe measured."""

    watts: Figure
    cores: Figure | None = None
    clock_hz: Figure | None = None
    bandwidth: Figure | None = None
    flops: Figure | None = None
    int8_ops: Figure | None = None
    provider_flops: Figure | None = None


class Product(_Strict, frozen=True):
    """Products with weights that one kernel reads, convolutions, attention without a cache. decode:
    pairs of (bytes of all weights that a step reads, bytes a second), rising. ops_s: operations a
    second of many rows at once; out_s: seconds of each output of a row besides, which is summed,
    finished and stored whatever its depth."""

    kernel: str
    decode: tuple[tuple[float, float], ...]
    ops_s: float
    out_s: float = 0.0


class Rates(_Strict, frozen=True):
    """What a probe found for a number of threads.

    step_s: a step before its first instruction. launch_s: an instruction that all threads wait for.
    row_s: each of many rows, an instruction. values_s, rows_s: float values a second of everything
    between products, for one row and for many. read: (bytes, bytes a second) of streaming through
    a block of that size. attend_bytes_s, attend_row_ops_s: keys and values that one row looks at,
    and its operations on them; attend_ops_s: operations of many rows. attend_read: (bytes, bytes a
    second) of keys and values by the size of all that a step reads; () for attend_bytes_s always.
    """

    threads: int
    step_s: float
    launch_s: float
    row_s: float
    values_s: float
    rows_s: float
    attend_bytes_s: float
    attend_row_ops_s: float
    attend_ops_s: float
    read: tuple[tuple[float, float], ...]
    products: tuple[Product, ...]
    attend_read: tuple[tuple[float, float], ...] = ()


class Measured(_Strict, frozen=True):
    """What a probe measured. spread: deviation of ln(measured / predicted). base_bytes: memory of
    a process with a model but without its weights, caches and arena. drift: time after 120 s of
    load over time before it. pace: time that loading a model takes over that of the machine which
    `forecast.starting` was measured on."""

    at: str
    edgert: str
    isa: str
    cpu: str
    spread: float
    base_bytes: float
    rates: tuple[Rates, ...]
    drift: float | None = None
    pace: float | None = None
    busy_cores: float = 0.0


class Profile(_Strict, frozen=True):
    """A device. mode: the power mode that the figures are for, "" for the profile's own."""

    schema: int
    name: str
    title: str
    kind: Kind
    sources: dict[str, str]
    cpu: Cpu
    memory: Memory
    storage: Storage
    roofline: Roofline
    providers: dict[str, Provider]
    match: Match = Match()
    modes: dict[str, Mode] = {}
    fanless: bool = False
    notes: str = ""
    measured: Measured | None = None
    mode: str = ""

    @property
    def spread(self) -> float:
        """Deviation of ln(time) around what is predicted for this device."""
        return NOMINAL_SPREAD if self.measured is None else self.measured.spread

    @property
    def label(self) -> str:
        """The name, with the power mode where one was chosen."""
        return f"{self.name}@{self.mode}" if self.mode else self.name

    def in_mode(self, name: str) -> Profile:
        """The same device in one of its power modes, without what was measured in the profile's
        own; KeyError for others."""
        mode, replace = self.modes[name], msgspec.structs.replace
        cpu = replace(self.cpu, **_given(mode, "cores", "clock_hz", "flops", "int8_ops"))
        memory = replace(self.memory, **_given(mode, "bandwidth"))
        providers = {
            key: replace(row, flops=mode.provider_flops) if row.flops and mode.provider_flops
            else row
            for key, row in self.providers.items()
        }  # fmt: skip
        return replace(self, cpu=cpu, memory=memory, providers=providers, mode=name, measured=None)


def _given(mode: Mode, *names: str) -> dict[str, Figure]:
    return {name: found for name in names if (found := getattr(mode, name)) is not None}


def figures(profile: Profile) -> Iterator[tuple[str, Figure]]:
    """Every figure of a profile and where it stands, as "memory.total"."""
    yield from _figures(profile, "")


def _figures(value: object, at: str) -> Iterator[tuple[str, Figure]]:
    if isinstance(value, Figure):
        yield at, value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from _figures(getattr(value, name), f"{at}.{name}" if at else name)
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _figures(inner, f"{at}.{name}")


def faults(profile: Profile) -> list[str]:
    """What is wrong with a profile whose keys and types are right."""
    found = []
    if profile.schema != SCHEMA:
        found.append(f"schema is {profile.schema}, expected {SCHEMA}")
    for at, figure in figures(profile):
        if not _positive(figure.value):
            found.append(f"{at} is {figure.value}, expected more than 0 and at most {LARGEST:g}")
        if figure.source not in profile.sources:
            found.append(f"{at} names the source {figure.source[:60]!r}, which [sources] lacks")
    return [*found, *_own_faults(profile), *_measured_faults(profile.measured)]


def _own_faults(profile: Profile) -> Iterator[str]:
    texts = [("name", profile.name), ("title", profile.title), ("cpu.name", profile.cpu.name)]
    for at, text in (*texts, *(("the name of a mode", name) for name in profile.modes)):
        if not 0 < len(text) <= NAME or not text.isprintable():
            yield f"{at} is {text[:60]!r}, expected 1 to {NAME} printable characters"
    if "" in profile.match.names:
        yield "match.names has an empty text, which every machine has in its name"
    if profile.mode and profile.mode not in profile.modes:
        yield f"mode is {profile.mode[:60]!r}, which [modes] lacks"
    for at in ("eta_bandwidth", "eta_compute"):
        if (share := getattr(profile.roofline, at).value) > 1:
            yield f"roofline.{at} is {share}, expected a share of at most 1"
    modes = {f"modes.{name}.cores": mode.cores for name, mode in profile.modes.items()}
    for at, cores in ({"cpu.cores": profile.cpu.cores} | modes).items():
        if cores is not None and not 1 <= cores.value <= CORES:
            yield f"{at} is {cores.value}, expected 1 to {CORES}"
    if profile.memory.usable.value > profile.memory.total.value:
        yield "memory.usable is more than memory.total"
    if odd := sorted(set(profile.cpu.isa) - set(INSTRUCTIONS)):
        yield f"cpu.isa has {odd[:3]}, expected some of {list(INSTRUCTIONS)}"
    if "cpu" not in profile.providers:
        yield "providers lacks cpu"
    for name, row in profile.providers.items():
        if not row.bits or not all(1 <= bits <= 32 for bits in row.bits) or row.max_batch < 1:
            yield (
                f"providers.{name} has bits {list(row.bits)[:8]} and max_batch {row.max_batch}, "
                "expected bits of 1 to 32, and 1 or more"
            )


def _measured_faults(measured: Measured | None) -> Iterator[str]:
    if measured is None:
        return
    if not measured.rates:
        yield "measured.rates is empty, expected one table for each number of threads"
    if measured.isa not in INSTRUCTIONS:
        yield f"measured.isa is {measured.isa[:60]!r}, expected one of {list(INSTRUCTIONS)}"
    if not 0 < measured.spread < 5:
        yield f"measured.spread is {measured.spread}, expected more than 0 and less than 5"
    for at in ("pace", "drift"):
        if (value := getattr(measured, at)) is not None and not 0 < value < 1e4:
            yield f"measured.{at} is {value}, expected more than 0 and less than 10000"
    for at in ("base_bytes", "busy_cores"):
        if not 0 <= (value := getattr(measured, at)) < LARGEST:
            yield f"measured.{at} is {value}, expected 0 or more"
    if len({rates.threads for rates in measured.rates}) < len(measured.rates):
        yield "measured.rates has two tables for one number of threads"
    for rates in measured.rates:
        for said in _rates_faults(rates):
            yield f"measured.rates of {rates.threads} threads {said}"


def _rates_faults(rates: Rates) -> Iterator[str]:
    if not 1 <= rates.threads <= CORES:
        yield f"is for none, expected 1 to {CORES}"
    plain = {n: getattr(rates, n) for n in rates.__struct_fields__ if n.endswith("_s")}
    plain |= {f"ops_s of {p.kernel[:40]!r}": p.ops_s for p in rates.products}
    for name, number in plain.items():
        if not _positive(number):
            yield f"has {name} {number}, which is not finite and positive"
    if not all(0 <= product.out_s < LARGEST for product in rates.products):
        yield "has an out_s below 0 or without bounds"
    if not rates.read or not rates.products or any(not p.decode for p in rates.products):
        yield "lacks read, products or their decode rates"
    curves = {"read": rates.read, "attend_read": rates.attend_read}
    curves |= {f"decode of {p.kernel[:40]!r}": p.decode for p in rates.products}
    for name, pairs in curves.items():
        if not all(_positive(number) for pair in pairs for number in pair):
            yield f"has in {name} a number that is not finite and positive"
        elif any(b <= a for (a, _), (b, _) in pairwise(pairs)):
            yield f"has in {name} sizes that do not rise"


def _positive(number: float) -> bool:
    return math.isfinite(number) and 0 < number <= LARGEST
