"""What a device does in a second, from what a probe measured there or from its data sheet."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

import msgspec

from ..devices.profile import Product, Profile, Rates
from ..errors import DeviceError

FLOAT_KERNELS = ("f32", "f16", "indexed16")  # products that compute in float32
GRIDS = ("conv_f16", "conv_f32", "conv_winograd", "dot_attention")  # of pictures, likewise
NOTHING = 1e-15  # seconds, where a data sheet says nothing
PACE_HZ = 3.0e9  # clock at which Python is taken to be as quick as `starting` says
SATURATING = 0.5  # share of the cores that together draw all of the memory's bandwidth


def rates_of(profile: Profile, threads: int | None = None, provider: str = "cpu") -> Rates:
    """Rates for a number of threads (None: all cores), of a provider.

    Of a probed device the measured ones for as many threads, else for the most of those that are
    fewer; of others the peaks times the shares that kernels reach. Raises DeviceError for a
    provider that the profile lacks.
    """
    if provider not in profile.providers:
        raise DeviceError(
            f"{profile.label} has no provider {provider[:40]!r}, expected one of "
            f"{sorted(profile.providers)}",
            code="device-provider",
            hint=f"edgert devices show {profile.name}",
        )
    cores = max(1, round(profile.cpu.cores.value))
    wanted = cores if threads is None else threads
    if profile.measured is not None and provider == "cpu":
        return _measured(profile.measured.rates, wanted)
    return _nominal(profile, min(wanted, cores), cores, provider)


def alone_of(profile: Profile, provider: str = "cpu") -> Rates | None:
    """Rates of one thread, by which a session takes small steps where that is quicker; None for
    providers that have no such choice."""
    return rates_of(profile, 1) if provider == "cpu" and "cpu" in profile.providers else None


def pace_of(profile: Profile) -> float:
    """Time that Python takes on a device over that on the machine of `starting`: probed, else by
    the clock."""
    if profile.measured is not None and profile.measured.pace is not None:
        return profile.measured.pace
    return PACE_HZ / profile.cpu.clock_hz.value if profile.measured is None else 1.0


def _measured(known: Sequence[Rates], wanted: int) -> Rates:
    exact = [rates for rates in known if rates.threads == wanted]
    if exact:
        return exact[0]
    fewer = [rates for rates in known if rates.threads < wanted]
    return max(fewer, key=lambda r: r.threads) if fewer else min(known, key=lambda r: r.threads)


def _nominal(profile: Profile, threads: int, cores: int, provider: str) -> Rates:
    """The roofline of a data sheet. Threads share bandwidth until half of the cores draw it all,
    and compute in proportion: reasoned, not measured."""
    roof, share = profile.roofline, threads / cores
    flops, ints = profile.cpu.flops.value * share, profile.cpu.int8_ops.value * share
    bandwidth = profile.memory.bandwidth.value * min(1.0, share / SATURATING)
    row = profile.providers[provider]
    if row.flops is not None:
        flops = ints = row.flops.value
        bandwidth = profile.memory.bandwidth.value
    bandwidth *= roof.eta_bandwidth.value
    flops, ints = flops * roof.eta_compute.value, ints * roof.eta_compute.value
    flat = ((1.0, bandwidth),)
    return Rates(
        threads=threads, step_s=roof.launch_s.value, launch_s=roof.launch_s.value,
        row_s=NOTHING, values_s=bandwidth / 4, rows_s=bandwidth / 4, attend_bytes_s=bandwidth,
        attend_row_ops_s=1 / NOTHING, attend_ops_s=flops, read=flat,
        products=(Product("float", flat, flops), Product("codes", flat, ints)),
    )  # fmt: skip


def kin_of(kernel: str) -> str:
    """How a kernel computes: "codes", "float", or on a "grid"."""
    return "grid" if kernel in GRIDS else "float" if kernel in FLOAT_KERNELS else "codes"


def product_of(rates: Rates, kernel: str) -> Product:
    """Rates of products with a kind of weights, of convolutions, or of attention without a cache:
    the probed kernel itself, else its nearest kin: another one that computes in the same way.
    Raises DeviceError where there is none."""
    found = {product.kernel: product for product in rates.products}
    if kernel in found:
        return found[kernel]
    if kernel == "dot_attention":
        return Product(kernel, rates.read, rates.attend_ops_s)
    kin = "codes" if kin_of(kernel) == "codes" else "float"
    if kin in found:
        return found[kin]
    direct = [p for p in rates.products if p.kernel in GRIDS[:2]]
    if kernel in GRIDS and direct:
        return direct[0]
    floats = [p for p in rates.products if p.kernel in FLOAT_KERNELS]
    codes = [p for p in rates.products if p.kernel not in (*FLOAT_KERNELS, *GRIDS)]
    if not floats and not codes:
        raise DeviceError(
            f"the rates of {rates.threads} threads have no product with weights, only "
            f"{sorted(found)[:6]}",
            code="device-profile", hint="measure the device again: edgert devices probe",
        )  # fmt: skip
    return (floats if kin == "float" and floats else codes or floats)[0]


def at_size(pairs: Sequence[tuple[float, float]], size: float) -> float:
    """The rate for a working set of `size` bytes, straight lines between logarithms."""
    sizes = [first for first, _ in pairs]
    index = bisect.bisect_left(sizes, size)
    if index == 0:
        return pairs[0][1]
    if index == len(pairs):
        return pairs[-1][1]
    (a, x), (b, y) = pairs[index - 1], pairs[index]
    share = math.log(size / a) / math.log(b / a)
    return math.exp((1 - share) * math.log(x) + share * math.log(y))


def scaled(profile: Profile, *, memory: float = 1, bandwidth: float = 1,
           compute: float = 1) -> Profile:  # fmt: skip
    """The same device with more memory, bandwidth or compute: what a shadow price asks about."""
    replace = msgspec.structs.replace

    def times(figure: object, factor: float) -> object:
        return replace(figure, value=figure.value * factor)  # type: ignore[attr-defined,type-var]

    room = replace(
        profile.memory,
        total=times(profile.memory.total, memory), usable=times(profile.memory.usable, memory),
        bandwidth=times(profile.memory.bandwidth, bandwidth),
    )  # fmt: skip
    cpu = replace(
        profile.cpu, flops=times(profile.cpu.flops, compute),
        int8_ops=times(profile.cpu.int8_ops, compute),
    )  # fmt: skip
    rows = {
        name: replace(row, flops=times(row.flops, compute)) if row.flops else row
        for name, row in profile.providers.items()
    }
    measured = profile.measured and replace(
        profile.measured,
        rates=tuple(_scaled(r, bandwidth, compute) for r in profile.measured.rates),
    )
    return replace(profile, memory=room, cpu=cpu, providers=rows, measured=measured)


def _scaled(rates: Rates, bandwidth: float, compute: float) -> Rates:
    def faster(pairs: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
        return tuple((size, rate * bandwidth) for size, rate in pairs)

    products = tuple(
        Product(p.kernel, faster(p.decode), p.ops_s * compute, p.out_s / compute)
        for p in rates.products
    )
    return msgspec.structs.replace(
        rates, read=faster(rates.read), products=products,
        attend_bytes_s=rates.attend_bytes_s * bandwidth, attend_read=faster(rates.attend_read),
        attend_row_ops_s=rates.attend_row_ops_s * compute,
        attend_ops_s=rates.attend_ops_s * compute,
    )  # fmt: skip
