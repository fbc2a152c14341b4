"""One run of `edgert test`: limits, a device, and how its verdicts are found."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ..devices.load import load
from ..devices.profile import Profile
from ..errors import DeviceError, RequestError
from ..session.cores import available_cores, cpu_quota, performance_cores
from ..session.options import SessionOptions
from ..storage.typed import Reader
from .baseline import check_comparable, compare
from .limits import Limit
from .report import SCHEMA, Report

HERE = "here"
MOST_MEMORY = 1 << 60  # bytes
BASELINE_BURSTS = 12  # at least, where runs are compared
LONGEST = 86400.0  # seconds
KV_BITS = (0, 4, 8, 16, 32)


class Ask(msgspec.Struct, frozen=True):
    """device: a profile's name or path, or "here" for whatever this machine is. predict: run
    nothing. threads: of sessions, which are kept on as many cores. limit_memory: bytes."""

    device: str = HERE
    predict: bool = False
    threads: int | None = None
    limit_memory: int | None = None
    seconds: float = 120.0
    kv_bits: int = 0
    compute: str = "cpu"
    baseline: Report | None = None
    save: bool = False  # take bursts enough to be a baseline


ASK = Reader(Ask)


def run(
    bundle: Path, limits: Sequence[Limit], ask: Ask,
    progress: Callable[[str], None] = lambda what: None,
) -> Report:  # fmt: skip
    """Verdicts of a bundle. Raises DeviceError where the device is another one and nobody asked to
    predict, or has fewer cores; RequestError for values out of range, for what a prediction has no
    use for, and for a baseline of something else; and what loading raises."""
    begun = time.perf_counter()
    _check(ask)
    profile = None if ask.device == HERE else load(ask.device)
    _check_threads(ask, profile)
    label = profile.label if profile else HERE
    if ask.predict:
        verdicts = _predicted(bundle, limits, ask, profile)
        spent = time.perf_counter() - begun
        return Report(SCHEMA, str(bundle), label, tuple(verdicts), spent, _conditions(ask))
    mode = _check_here(profile) if profile is not None else ""
    if ask.limit_memory is not None:
        _check_memory(ask.limit_memory, limits)
    conditions = _conditions(ask)
    if ask.baseline is not None:
        check_comparable(ask.baseline, str(bundle), label, conditions, limits)
    from ..machine.probe import Busy
    from .measure import measure

    options = SessionOptions(device=ask.compute, threads=ask.threads, kv_bits=ask.kv_bits)
    compared = ask.save or ask.baseline is not None
    watch = Busy()
    with on_cores(ask.threads):
        found = measure(
            bundle, limits, options, seconds=ask.seconds, limit_memory=ask.limit_memory,
            least_bursts=BASELINE_BURSTS if compared else 0, progress=progress,
        )  # fmt: skip
    if ask.baseline is not None:
        found += compare(found, ask.baseline)
    conditions = {"busy_cores": round(watch.others(), 2), **conditions}
    if mode:
        conditions["power_mode"] = mode
    spent = time.perf_counter() - begun
    return Report(SCHEMA, str(bundle), label, tuple(found), spent, conditions)


def _conditions(ask: Ask) -> dict[str, Any]:
    """What times and memory depend on besides the bundle and the device."""
    found: dict[str, Any] = {"provider": ask.compute, "kv_bits": ask.kv_bits}
    if ask.threads is not None:
        found["threads"] = ask.threads
    if ask.limit_memory is not None:
        from .children import how_limited

        found |= {"limit_memory": ask.limit_memory, "limited_by": how_limited()}
    return found


def _check(ask: Ask) -> None:
    """RequestError for values out of range, and for what says nothing beside `predict`."""
    for name, value, fits, expected in (
        ("seconds", ask.seconds, 0 < ask.seconds <= LONGEST, f"above 0 and at most {LONGEST:.0f}"),
        ("kv_bits", ask.kv_bits, ask.kv_bits in KV_BITS, f"one of {KV_BITS}"),
    ):
        if not fits:
            raise RequestError(
                f"{name} is {value}, expected {expected}", code="parameter-range", field=name,
                hint="leave it out for the default",
            )  # fmt: skip
    if ask.predict and ask.baseline is not None:
        raise RequestError(
            "a prediction is compared with no baseline, which holds what was measured",
            code="baseline", hint="leave out one of the two",
        )  # fmt: skip
    given = {"limit_memory": ask.limit_memory is not None, "save": ask.save}
    if ask.predict and (found := [name for name, there in given.items() if there]):
        raise RequestError(
            f"{' and '.join(found)} say nothing of a prediction, which runs nothing",
            code="test-predict", hint="leave it out; peak_mb limits the memory that is predicted",
        )  # fmt: skip


def _check_threads(ask: Ask, profile: Profile | None) -> None:
    """DeviceError for more threads than there are cores, here or on the device to predict."""
    if ask.threads is None:
        return
    where = "this machine has for this process"
    most = min(float(len(available_cores())), max(1.0, math.ceil(min(cpu_quota(), 1e9))))
    if ask.predict and profile is not None:
        probed = profile.measured.rates if profile.measured else ()
        most = max([profile.cpu.cores.value, *(rates.threads for rates in probed)])
        where = f"{profile.label} has"
    if not 1 <= ask.threads <= most:
        raise DeviceError(
            f"threads is {ask.threads}, expected 1 to the {most:.0f} cores that {where}",
            code="threads", hint="leave it out for one a core",
        )  # fmt: skip


def _predicted(bundle: Path, limits: Sequence[Limit], ask: Ask, profile: Profile | None) -> Any:
    from .predict import predict

    if profile is None:
        raise DeviceError(
            "a prediction needs a device", code="device-name",
            hint="name one with --device, or measure this one: edgert devices probe -o here.toml",
        )  # fmt: skip
    return predict(
        bundle, limits, profile, threads=ask.threads, kv_bits=ask.kv_bits, provider=ask.compute
    )


def _check_memory(size: int, limits: Sequence[Limit]) -> None:
    """DeviceError for a limit on memory that cannot be kept, or would hold for nothing."""
    if sys.platform != "linux":
        raise DeviceError(
            f"a limit on memory needs Linux, this is {sys.platform}", code="test-memory",
            hint="leave --limit-memory out; peak_mb in the budget is measured everywhere",
        )  # fmt: skip
    if not 0 < size < MOST_MEMORY:
        raise DeviceError(
            f"a limit of {size} bytes on memory, expected 1 or more and less than 2 ** 60",
            code="test-memory", hint="give the memory of a machine, such as 2G",
        )  # fmt: skip
    if not any(limit.metric.kind == "process" for limit in limits):
        raise DeviceError(
            "the limit on memory is of processes that load and start the model, and nothing of the "
            "budget starts one",
            code="test-memory", hint="add load_s, cold_start_s or peak_mb",
        )  # fmt: skip


def _check_here(profile: Profile) -> str:
    """The power mode that was found, as `machine.here.power_mode` says it. DeviceError where this
    machine is another one."""
    from ..machine.here import differences, power_mode

    if found := differences(profile):
        raise DeviceError(
            f"this machine is not {profile.label} ({profile.title}), so nothing can be measured: "
            f"{'; '.join(found)}",
            code="device-elsewhere",
            hint="--predict says what to expect there; --device here measures this machine",
        )
    return power_mode(profile)


@contextlib.contextmanager
def on_cores(threads: int | None) -> Iterator[None]:
    """This process and its children on as many cores as `threads`, so that a machine of so many is
    what they see; no change for None, or where the system cannot."""
    if threads is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    cores = performance_cores()
    wanted = cores[:threads] if len(cores) >= threads else sorted(before)[:threads]
    os.sched_setaffinity(0, wanted)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
