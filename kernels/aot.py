"""Kernels to object files, for this machine or another one: one instruction set a process.

    python -m edgert.kernels.aot SYSTEM MACHINE ISA FOLDER     (what `kernels/build.py` starts)

Numba types and lowers each kernel as it does just in time; then LLVM optimizes it as one module and
writes an object file for the target. Numba's way to another target is not public: the classes below
replace where it would run what it compiles. They are written against the version in
pyproject.toml's build requirements.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from . import isa, library

# LLVM's names of the targets.
TRIPLES = {
    ("linux", "x86_64"): "x86_64-unknown-linux-gnu",
    ("linux", "aarch64"): "aarch64-unknown-linux-gnu",
    ("darwin", "x86_64"): "x86_64-apple-macosx11.0.0",
    ("darwin", "aarch64"): "arm64-apple-macosx11.0.0",
    ("win32", "x86_64"): "x86_64-pc-windows-msvc",
    ("win32", "aarch64"): "aarch64-pc-windows-msvc",
}


class BuildError(RuntimeError):
    """Kernels cannot be compiled ahead of time."""


def compile_all(system: str, machine: str, isa_name: str, folder: Path) -> list[str]:
    """An object file for each kernel and entry, and one that says what they are for. Returns the
    kernels' names. Settles what this process compiles for: once."""
    isa.build_for(machine, isa_name)
    from numba.core.compiler_lock import global_compiler_lock

    from .cpu import jit, vm

    compiler = _Compiler(TRIPLES[system, machine], *isa.target())
    names = sorted([*vm.registry, *vm.entries])
    with global_compiler_lock:
        for name in names:
            made = compiler.object_of(name, jit.function(name), jit.signature(name))
            (folder / f"{name}.o").write_bytes(made)
    said = f"{library.key_of(isa_name, system, machine)} {library.sources_hash()}"
    made = compiler.text_object(library.IDENTITY, said, windows=system == "win32")
    (folder / f"{library.IDENTITY}.o").write_bytes(made)
    return names


class _Compiler:
    """Numba and LLVM for one target."""

    def __init__(self, triple: str, cpu: str, features: str) -> None:
        import llvmlite.binding as llvm
        from numba import _dynfunc
        from numba.core import cpu as numba_cpu
        from numba.core.registry import cpu_target

        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        self.llvm, self.triple = llvm, triple
        self.machine = llvm.Target.from_triple(triple).create_target_machine(
            cpu=cpu, features=features, opt=3, reloc="pic", codemodel="default"
        )
        self.typing, self.target = cpu_target.typing_context, cpu_target.target_context
        self.typing.refresh()
        self.target.refresh()
        context: Any = numba_cpu.CPUContext
        # No functions that Python could call, no reference counts, nothing to run.
        context.create_cpython_wrapper = context.create_cfunc_wrapper = lambda *a, **k: None
        context.post_lowering = lambda *a: None
        context.get_executable = lambda _self, lib, described, env: _dynfunc.make_function(
            described.lookup_module(), described.qualname.split(".")[-1], "", 1, env, (lib,)
        )
        self.target._internal_codegen = _codegen(triple, self.machine)

    def object_of(self, name: str, function: Any, signature: Any) -> bytes:
        """A kernel as an object file with one exported symbol."""
        module = self._kernel(name, function, signature)
        self._optimize(module)
        module.verify()
        missing = [f.name for f in module.functions if f.is_declaration and "llvm." not in f.name]
        if missing:
            raise BuildError(f"{name} calls {missing}, expected nothing outside of itself")
        return bytes(self.machine.emit_object(module))

    def _kernel(self, name: str, function: Any, signature: Any) -> Any:
        """Everything a kernel needs in one module, its entry under its own name."""
        from numba.core import compiler

        flags = compiler.Flags()
        flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
        flags.error_model, flags.nrt, flags.enable_looplift = "numpy", False, False
        made = compiler.compile_extra(
            self.typing, self.target, function, signature.args, signature.return_type, flags, {}
        )
        made.library.finalize()
        module = made.library._final_module.clone()
        symbol = library.PREFIX + name
        module.link_in(self.llvm.parse_assembly(str(self._entry(symbol, made.fndesc, signature))))
        for value in [*module.functions, *module.global_variables]:
            if not value.is_declaration and value.name != symbol:
                value.linkage = "internal"
        module.name = name
        return module

    def _entry(self, symbol: str, described: Any, signature: Any) -> Any:
        """A C function that calls Numba's, which gives its result and a status through pointers.
        Kernels raise nothing: the status is always 0."""
        from llvmlite import ir
        from numba import types

        module = self.target.codegen()._create_empty_module(symbol)
        kind = self.target.call_conv.get_function_type(described.restype, described.argtypes)
        inner = ir.Function(module, kind, described.llvm_func_name)
        has_result = signature.return_type is not types.void
        word = ir.IntType(64)
        outer = ir.FunctionType(word if has_result else ir.VoidType(), [word] * len(signature.args))
        entry = ir.Function(module, outer, symbol)
        if "windows" in self.triple:
            entry.storage_class = "dllexport"
        b = ir.IRBuilder(entry.append_basic_block())
        result, error = (b.alloca(pointer.pointee) for pointer in kind.args[:2])
        b.call(inner, [result, error, *entry.args])
        if has_result:
            b.ret(b.load(result))
        else:
            b.ret_void()
        return module

    def _optimize(self, module: Any) -> None:
        """Numba's two rounds over the module, the first to inline."""
        codegen = self.target.codegen()
        for options in ({"opt": 0, "cost": "cheap", "loop_vectorize": False}, {}):
            passes, builder = codegen._module_pass_manager(**{"slp_vectorize": False, **options})
            passes.run(module, builder)

    def text_object(self, name: str, text: str, *, windows: bool) -> bytes:
        """An exported constant; for Windows also the symbol that says floats are used."""
        from llvmlite import ir

        module = self.target.codegen()._create_empty_module(name)
        data = bytearray(text.encode() + b"\0")
        kind = ir.ArrayType(ir.IntType(8), len(data))
        value = ir.GlobalVariable(module, kind, library.PREFIX + name)
        value.initializer, value.global_constant = ir.Constant(kind, data), True
        if windows:
            value.storage_class = "dllexport"
            used = ir.GlobalVariable(module, ir.IntType(32), "_fltused")
            used.initializer = ir.Constant(ir.IntType(32), 0)
        return bytes(self.machine.emit_object(self.llvm.parse_assembly(str(module))))


def _codegen(triple: str, machine: Any) -> Any:
    """What Numba asks for modules and passes, for a target that does not run here."""
    from llvmlite import ir
    from numba.core import cgutils, codegen

    class Library(codegen.AOTCodeLibrary):  # type: ignore[misc]
        """Helpers are linked as they are: the kernel that holds them is optimized once."""

        def _optimize_final_module(self) -> None:
            pass

        def _optimize_functions(self, ll_module: Any) -> None:
            ll_module.data_layout = self._codegen._data_layout

        def get_pointer_to_function(self, name: str) -> int:
            return 0

    class Codegen(codegen.CPUCodegen):  # type: ignore[misc]
        _library_class = Library

        def _init(self, llvm_module: Any) -> None:
            self._tm, self._tm_features, self._engine = machine, "", None
            self._target_data = machine.target_data
            self._data_layout = str(self._target_data)
            self._loopvect, self._opt_level = False, 0

        def _create_empty_module(self, name: str) -> Any:
            module = ir.Module(cgutils.normalize_ir_text(name))
            module.triple = triple
            if self._data_layout:
                module.data_layout = self._data_layout
            return module

        def _add_module(self, module: Any) -> None:
            pass

        def set_env(self, env_name: str, env: Any) -> None:
            pass

        def magic_tuple(self) -> Any:
            return (triple,)

    return Codegen("edgert")


def main() -> None:
    system, machine, isa_name, folder = sys.argv[1:]
    for name in compile_all(system, machine, isa_name, Path(folder)):
        print(name)


if __name__ == "__main__":
    main()
