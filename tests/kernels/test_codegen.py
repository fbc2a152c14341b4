"""The dot products become the instructions they are named after: machine code made for each ISA by
cross-compilation, on any machine."""

from __future__ import annotations

import json
import re

import pytest
from edgert.kernels import isa

from ..fresh import python

# Emits each intrinsic as a function of its own for the CPU that isa.TARGETS names.
EMIT = r"""
import json, sys
import llvmlite.binding as llvm
from edgert.kernels import isa, simd, simd_dots, simd_pairs
from llvmlite import ir

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
target = llvm.Target.from_triple(sys.argv[1])
machine = target.create_target_machine(*isa.target(), opt=3)
acc, words, bytes64 = simd.i32x16.llvm, simd.i16x32.llvm, simd.i8x64.llvm
int64 = ir.IntType(64)
asm = {}
for intrinsic, kinds in (
    (simd_dots.dot_nibbles, (acc, bytes64, bytes64)),
    (simd_dots.dot_bytes, (acc, bytes64, bytes64)),
    (simd_dots.maddubs, (bytes64, bytes64)),
    (simd_dots.maddss, (bytes64, bytes64)),
    (simd_dots.pair_sums, (words,)),
    (simd.load_f16, (int64,)),
    (simd_pairs.pair_dot, (acc, bytes64, simd_pairs.i8x16.llvm)),
    (simd_pairs.pair_nibbles, (int64,)),
    (simd_pairs.pair_bytes, (int64,)),
):
    name = intrinsic.build.__name__
    if name.startswith(("madd", "pair_sums")) and simd.ISA != "avx2":
        continue
    if name in ("pair_dot", "pair_nibbles", "pair_bytes") and not simd_pairs.PAIRED:
        continue
    module = ir.Module()
    module.triple, module.data_layout = sys.argv[1], str(machine.target_data)
    slot = ir.Function(module, ir.FunctionType(ir.VoidType(), [*kinds, int64]), name)
    b = ir.IRBuilder(slot.append_basic_block())
    simd._store(b, slot.args[-1], intrinsic.build(b, *slot.args[:-1]))
    b.ret_void()
    asm[name] = machine.emit_assembly(llvm.parse_assembly(str(module)))
print(json.dumps([simd.ISA, asm]))
"""
X86, ARM = "x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"


def counts(assembly: str) -> dict[str, int]:
    """How often each instruction occurs."""
    found = re.findall(r"^\t(?:\{vex\}\s+)?([a-z][a-z0-9]*)\b", assembly, re.MULTILINE)
    return {name: found.count(name) for name in set(found)}


def emitted(name: str) -> dict[str, str]:
    """Intrinsic -> assembly, as the instruction set's own process would make it."""
    triple = ARM if isa.MACHINES[name] is isa.ARM else X86
    done = python(EMIT, triple, env={isa.VARIABLE: name, isa.FORCE: "1"})
    assert done.returncode == 0, done.stderr
    chosen, assembly = json.loads(done.stdout)
    assert chosen == name
    return dict(assembly)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("avx512vnni", {"dot_nibbles": {"vpdpbusd": 1}, "dot_bytes": {"vpdpbusd": 1},
                        "load_f16": {"vcvtph2ps": 1}}),
        ("avxvnni", {"dot_nibbles": {"vpdpbusd": 2}, "dot_bytes": {"vpdpbusd": 2},
                     "load_f16": {"vcvtph2ps": 2}}),
        ("avx2", {"maddubs": {"vpmaddubsw": 2}, "pair_sums": {"vpmaddwd": 2},
                  "maddss": {"vpabsb": 2, "vpsignb": 2, "vpmaddubsw": 2},
                  "load_f16": {"vcvtph2ps": 2}}),
        ("dotprod", {"dot_nibbles": {"sdot": 4}, "dot_bytes": {"sdot": 4},
                     "pair_dot": {"sdot": 8, "smmla": 0}, "load_f16": {"fcvtl": 2, "fcvtl2": 2}}),
        ("i8mm", {"dot_nibbles": {"sdot": 4}, "dot_bytes": {"sdot": 4},
                  "pair_dot": {"smmla": 4, "sdot": 0},
                  "pair_nibbles": {"zip1": 2, "zip2": 2}, "pair_bytes": {"zip1": 2, "zip2": 2}}),
    ],
)  # fmt: skip
def test_dot_products_are_single_instructions(
    name: str, expected: dict[str, dict[str, int]]
) -> None:
    assembly = emitted(name)
    for intrinsic, wanted in expected.items():
        found = counts(assembly[intrinsic])
        got = {instruction: found.get(instruction, 0) for instruction in wanted}
        assert got == wanted, f"{name} {intrinsic}:\n{assembly[intrinsic]}"


def test_registers_and_elements() -> None:
    """Whole 512-bit registers, the VEX form without AVX-512, inputs taken by element on ARM."""
    assert re.search(r"vpdpbusd\s.*%zmm", emitted("avx512vnni")["dot_nibbles"])
    narrow = emitted("avxvnni")["dot_nibbles"]
    assert narrow.count("{vex}") == 2
    assert "%zmm" not in narrow
    by_element = emitted("dotprod")["pair_dot"]
    assert len(re.findall(r"sdot\s.*\.4b\[[0-3]\]", by_element)) == 8
    assert "dup" not in counts(by_element)
