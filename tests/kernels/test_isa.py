"""Every instruction set that this CPU has: against the NumPy reference and against the others."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels import isa, simd

from ..arm.check_kernels import LIMITS
from ..closeness import assert_close
from ..conftest import ROOT
from ..fresh import python
from ..tiny import tiny_bundle
from .isa_logits import KV_BITS, cpu_logits, reference_logits
from .products import F32

SETS = 1e-5  # of the logits, between instruction sets


def run(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    """A module of the tests in a process of its own, with kernels for this instruction set."""
    return subprocess.run(
        [sys.executable, "-m", *args], env=os.environ | {isa.VARIABLE: name},
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def own(kernel_folder: Path) -> F32:
    """Logits of the instruction set that this process uses."""
    return cpu_logits(kernel_folder)


def test_this_one_agrees_with_the_reference(own: F32) -> None:
    reference = reference_logits()
    for bits, got in zip(KV_BITS, own, strict=True):
        assert_close(f"{simd.ISA}, {bits}-bit KV", reference, got, rms=LIMITS[bits])


def others() -> list[object]:
    """The common set and the portable one; a third has no code of its own, and takes 15 s too."""
    names = [name for name in isa.supported() if name != simd.ISA]
    fast = ("avx2", "dotprod", "portable")
    return [pytest.param(n, marks=[] if n in fast else pytest.mark.slow) for n in names]


@pytest.mark.parametrize("name", others())
def test_instruction_sets_agree(name: str, own: F32, kernel_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "logits.npy"
    done = run(name, "tests.kernels.isa_logits", str(out), str(kernel_folder / name))
    assert done.returncode == 0, done.stderr
    for bits, expected, got in zip(KV_BITS, own, np.load(out), strict=True):
        assert_close(f"{name} and {simd.ISA}, {bits}-bit KV", expected, got, rms=SETS)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in isa.supported() if name != simd.ISA])
def test_products_of_every_instruction_set(name: str) -> None:
    """All of test_packed_linear.py, and the instructions of the products."""
    done = run(name, "pytest", "-q", "tests/kernels/test_packed_linear.py")
    assert done.returncode == 0, done.stdout
    done = run(name, "tests.arm.check_kernels", "assembly")
    assert done.returncode == 0, done.stdout
    assert f"kernels for {name}" in done.stdout


HALVES = """
import numpy as np
from edgert.kernels import simd
from numba import njit

@njit
def widen(source, out, n):
    for i in range(n // 16):
        simd.store_f32(out + 64 * i, simd.load_f16(source + 32 * i))

@njit
def narrow(source, out, n):
    for i in range(n // 16):
        simd.store_f16(out + 32 * i, simd.load_f32(source + 64 * i))

codes = np.arange(1 << 16, dtype=np.uint16)
expected = codes.view(np.float16).astype(np.float32)
widened = np.empty_like(expected)
widen(codes.ctypes.data, widened.ctypes.data, codes.size)
print(np.array_equal(widened.view(np.uint32), expected.view(np.uint32)))

# Every code's neighbours, the midpoints and their neighbours, and anything else.
near = expected.view(np.uint32)[:, None] + np.array([0, 1, 0xFFF, 0x1000, 0x1001, 0x1FFF])
bits = np.append(near.ravel(), np.random.default_rng(0).integers(0, 1 << 32, 1 << 16))
values = bits.astype(np.uint32).view(np.float32)
got = np.empty(values.size, np.float16)
narrow(values.ctypes.data, got.ctypes.data, values.size)
with np.errstate(over="ignore", invalid="ignore"):
    rounded = values.astype(np.float16)
known = ~np.isnan(values)
print(np.array_equal(got.view(np.uint16)[known], rounded.view(np.uint16)[known]))
print(bool(np.isnan(got[~known]).all()), simd.BASELINE)
"""


def test_float16_without_instructions_for_it() -> None:
    """LLVM would call functions that no process has, and end it."""
    done = python(HALVES, env={isa.VARIABLE: "portable"})
    assert done.returncode == 0, done.stderr
    baseline = "True" if isa.machine() == isa.X86 else "False"
    assert done.stdout.split() == ["True", "True", "True", baseline]


@pytest.mark.parametrize("first", ["numba", "edgert.kernels.cpu.linear", "edgert.kernels.simd"])
def test_numba_compiles_for_the_chosen_set(first: str) -> None:
    """Whatever was imported first."""
    code = (
        f"import {first}\n"
        f"from edgert.kernels import simd\n"
        f"from numba.core.registry import cpu_target\n"
        f"codegen = cpu_target.target_context.codegen()\n"
        f"print([codegen._get_host_cpu_name(), codegen._get_host_cpu_features()])\n"
    )
    done = python(code, env={isa.VARIABLE: "portable"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(
        list(isa.TARGETS["portable"] if isa.machine() == isa.X86 else ("generic", ""))
    )


def test_features_are_read_from_proc() -> None:
    arm = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\n"
    assert {"neon", "dotprod", "i8mm"} <= isa.features_from_proc(arm)
    x86 = "flags\t\t: avx2 avx512_vnni avx_vnni\n"
    assert {"avx2", "avx512vnni", "avxvnni"} <= isa.features_from_proc(x86)


@pytest.mark.parametrize(
    ("machine", "features", "best"),
    [
        ("aarch64", "asimd asimddp i8mm", "i8mm"),
        ("aarch64", "asimd asimddp", "dotprod"),
        ("aarch64", "asimd i8mm", "portable"),
        ("aarch64", "asimd", "portable"),
        ("x86_64", "avx2 fma f16c avx_vnni", "avxvnni"),
        ("x86_64", "avx2 fma f16c", "avx2"),
        ("x86_64", "avx2 fma", "portable"),
        ("x86_64", "asimd asimddp i8mm", "portable"),
    ],
)
def test_the_best_instruction_set(
    monkeypatch: pytest.MonkeyPatch, machine: str, features: str, best: str
) -> None:
    found = frozenset(isa.features_from_proc(f"flags : {features}"))
    monkeypatch.setattr(isa, "cpu_features", lambda: found)
    monkeypatch.setattr(isa.platform, "machine", lambda: machine)
    assert isa.supported()[0] == best
    assert isa.supported()[-1] == "portable"


def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*args: object, **options: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(isa, "open", absent, raising=False)
    monkeypatch.setitem(sys.modules, "llvmlite", None)
    monkeypatch.setitem(sys.modules, "llvmlite.binding", None)


def test_without_proc_and_llvm_the_portable_set_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    without_proc(monkeypatch)
    monkeypatch.setattr(sys, "platform", "linux")
    features = isa.cpu_features.__wrapped__()
    assert features == frozenset()
    monkeypatch.setattr(isa, "cpu_features", lambda: features)
    assert isa.supported() == ("portable",)


def test_a_broken_llvmlite_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, bool]:
        raise OSError("cannot find libllvmlite")

    without_proc(monkeypatch)
    binding = types.SimpleNamespace(get_host_cpu_features=broken)
    monkeypatch.setitem(sys.modules, "llvmlite", types.SimpleNamespace(binding=binding))
    monkeypatch.setitem(sys.modules, "llvmlite.binding", binding)
    assert isa.features_from_llvm() == set()
    binding.get_host_cpu_features = lambda: {"avx2": True, "fma": False}
    assert isa.features_from_llvm() == {"avx2"}


@pytest.mark.parametrize(
    ("machine", "known", "best"),
    [
        ("arm64", {"arm.FEAT_DotProd": 1, "arm.FEAT_I8MM": 1}, "i8mm"),
        ("arm64", {"arm.FEAT_DotProd": 1, "arm.FEAT_I8MM": 0}, "dotprod"),
        ("arm64", {}, "dotprod"),
        ("x86_64", {"avx2_0": 1, "fma": 1, "f16c": 1}, "avx2"),
        ("x86_64", {"avx2_0": 0, "fma": 1, "f16c": 1}, "portable"),
        ("x86_64", {}, "portable"),
    ],
)
def test_features_of_macos(
    monkeypatch: pytest.MonkeyPatch, machine: str, known: dict[str, int], best: str
) -> None:
    def sysctlbyname(name: bytes, value: Any, size: Any, new: None, length: None) -> int:
        found = known.get(name.decode().removeprefix("hw.optional."))
        if found is None:
            return -1
        value._obj.value, size._obj.value = found, 4
        return 0

    without_proc(monkeypatch)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(isa.platform, "machine", lambda: machine)
    monkeypatch.setattr(isa.platform, "system", lambda: "Darwin")
    library = types.SimpleNamespace(sysctlbyname=sysctlbyname)
    monkeypatch.setattr(isa.ctypes, "CDLL", lambda name: library)
    features = isa.cpu_features.__wrapped__()
    monkeypatch.setattr(isa, "cpu_features", lambda: features)
    assert isa.supported()[0] == best


@pytest.mark.parametrize(
    ("machine", "numbers", "vendor", "best"),
    [
        ("AMD64", {40, 41}, "Intel64 Family 6 Model 142 Stepping 10, GenuineIntel", "avx2"),
        ("AMD64", {40}, "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", "avx2"),
        ("AMD64", {40}, "VIA64 Family 6 Model 15 Stepping 13, CentaurHauls", "portable"),
        ("AMD64", set(), "Intel64 Family 6 Model 92 Stepping 9, GenuineIntel", "portable"),
        ("ARM64", {43}, "ARMv8 (64-bit) Family 8 Model 1 Revision 201, Qualcomm", "dotprod"),
        ("ARM64", set(), "ARMv8 (64-bit) Family 8 Model 1 Revision 201, Qualcomm", "portable"),
    ],
)
def test_features_of_windows(
    monkeypatch: pytest.MonkeyPatch, machine: str, numbers: set[int], vendor: str, best: str
) -> None:
    without_proc(monkeypatch)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(isa.platform, "machine", lambda: machine)
    monkeypatch.setattr(isa.platform, "processor", lambda: vendor)
    kernel32 = types.SimpleNamespace(IsProcessorFeaturePresent=lambda number: number in numbers)
    system = types.SimpleNamespace(kernel32=kernel32)
    monkeypatch.setattr(isa.ctypes, "windll", system, raising=False)
    features = isa.cpu_features.__wrapped__()
    monkeypatch.setattr(isa, "cpu_features", lambda: features)
    assert isa.supported()[0] == best


def test_an_answer_without_proc_and_llvm(tmp_path: Path) -> None:
    """As a plain installation in a container that hides /proc/cpuinfo."""
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    code = (
        "import builtins, sys\n"
        "sys.modules['numba'] = sys.modules['llvmlite'] = None\n"
        "opened = builtins.open\n"
        "def without(file, *args, **options):\n"
        "    if file == '/proc/cpuinfo':\n"
        "        raise PermissionError(13, 'no')\n"
        "    return opened(file, *args, **options)\n"
        "builtins.open = without\n"
        "import edgert\n"
        f"with edgert.load({str(bundle)!r}) as model:\n"
        "    print(len(model.generate('hi', max_tokens=3).token_ids))\n"
        "from edgert.machine.doctor import examine\n"
        "print(examine().cpu['instruction_set'])\n"
    )
    done = python(code, env={isa.VARIABLE: "", "EDGERT_CACHE": str(tmp_path / "cache")})
    assert (done.returncode, done.stdout) == (0, "3\nportable\n"), done.stderr
    assert "Traceback" not in done.stderr
