"""Who may import whom, that no imports go in a circle, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from .conftest import ROOT
from .tiny import tiny_bundle

PACKAGES = {
    "edgert": "edgert",
    "kernels": "edgert.kernels",
    "converters": "edgert.converters",
    "devices": "edgert.devices",
}
CORE = {
    "numpy", "tokenizers", "safetensors", "jinja2", "click", "msgspec", "tqdm", "platformdirs",
    "psutil",
}  # fmt: skip
# Third-party packages a folder may import: anywhere, and inside functions only.
ANYWHERE = {
    "edgert": CORE,
    "kernels": {"numpy", "numba", "llvmlite", "msgspec", "setuptools"},
    "converters": {"numpy", "msgspec", "tqdm", "safetensors", "torch", "tokenizers"},
    "devices": {"msgspec", "psutil", "numpy"},
}
INSIDE = {
    "edgert": {"onnxruntime", "PIL", "tomli", "pytest", "scipy", "matplotlib"},
    "kernels": {"onnx"},
    "converters": {
        "onnx", "gguf", "huggingface_hub", "onnxruntime", "psutil", "distributed", "matplotlib",
        "jinja2", "markupsafe",
    },
    "devices": {"tomli"},
}  # fmt: skip
# Modules of edgert that each folder may import anywhere; edgert.converters in functions only.
OWN = {
    "edgert": ("edgert",),
    "kernels": ("edgert.kernels",),
    "converters": ("edgert",),
    # a profile is a user's file: its faults are users' errors, its size is a limit of the runtime
    "devices": ("edgert.devices", "edgert.errors", "edgert.limits", "edgert.storage.typed"),
}


class Import(NamedTuple):
    """An imported name in full (`package.module.name`). top: whether importing the file runs it.
    typing: whether it stands under `if TYPE_CHECKING`."""

    name: str
    line: int
    top: bool
    typing: bool

    @property
    def root(self) -> str:
        return self.name.split(".")[0]


def sources(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path: Path, folder: str) -> str:
    """The module's name, which ends in `__init__` for a package."""
    parts = path.relative_to(ROOT / folder).with_suffix("").parts
    return ".".join([PACKAGES[folder], *parts])


def imports_of(text: str, module: str) -> Iterator[Import]:
    """All imports of a module's text."""

    def walk(node: ast.AST, top: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(a.name, child.lineno, top, typing) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                parents = module.split(".")[: -child.level] if child.level else []
                base = ".".join([*parents, *filter(None, [child.module])])
                yield from (
                    Import(f"{base}.{a.name}", child.lineno, top, typing) for a in child.names
                )
            else:
                inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                checked = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from walk(child, top and not inner, typing or checked)

    yield from walk(ast.parse(text), True, False)


Graph = dict[str, set[str]]


def import_graph(texts: Mapping[str, str]) -> Graph:
    """Which modules each module imports, of those in `texts`; type-only imports and imports inside
    functions count. A name from a package is its submodule of that name, if there is one."""
    names = {module.removesuffix(".__init__") for module in texts}
    graph: Graph = {}
    for module, text in texts.items():
        found = (imported.name for imported in imports_of(text, module))
        targets = {name if name in names else name.rpartition(".")[0] for name in found}
        graph[module.removesuffix(".__init__")] = targets & names
    return graph


def cycle_in(graph: Graph) -> list[str]:
    """Modules of which each imports the next and the last is the first; empty without a circle."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return []
        for target in sorted(graph[module]):
            if cycle := visit(target, [*path, module]):
                return cycle
        finished.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), [])


def test_no_imports_in_a_circle() -> None:
    texts = {
        module_of(path, folder): path.read_text(encoding="utf-8")
        for folder in PACKAGES
        for path in sources(folder)
    }
    cycle = cycle_in(import_graph(texts))
    assert not cycle, " -> ".join(cycle)


@pytest.mark.parametrize(
    "text",
    [
        "from .b import f",
        "from . import b",
        "import p.b",
        "def f():\n    from p import b",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..p.b import T",
        "from .c import g",
        "from . import a",
    ],
)
def test_the_judge_of_circles_can_say_no(text: str) -> None:
    texts = {"p.__init__": "", "p.a": text, "p.b": "from . import a", "p.c": "from .b import f"}
    cycle = cycle_in(import_graph(texts))
    assert cycle[0] == cycle[-1]
    assert "p.a" in cycle
    assert not cycle_in(import_graph(texts | {"p.a": "from . import VERSION"}))


def complaint(folder: str, found: Import) -> str:
    """Why an import is not allowed in a folder, or nothing."""
    if found.typing or found.root in sys.stdlib_module_names:
        return ""
    if found.root == "edgert":
        if not found.name.startswith(OWN[folder]):
            return "is not this folder's to import"
        if folder == "edgert" and found.top and found.name.startswith("edgert.converters"):
            return "is for inside functions only"
        return ""
    if found.root in ANYWHERE[folder] or (found.root in INSIDE[folder] and not found.top):
        return ""
    return "is for inside functions only" if found.root in INSIDE[folder] else "is forbidden here"


@pytest.mark.parametrize("folder", list(PACKAGES))
def test_folders_import_only_what_they_may(folder: str) -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{found.line}: {found.name} {why}"
        for path in sources(folder)
        for found in imports_of(path.read_text(encoding="utf-8"), module_of(path, folder))
        if (why := complaint(folder, found))
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("folder", "text", "why"),
    [
        ("edgert", "import torch", "forbidden"),
        ("edgert", "def f():\n    import onnx", "forbidden"),
        ("edgert", "from .converters.convert import convert", "inside functions"),
        ("edgert", "def f():\n    from .converters.convert import convert", ""),
        ("edgert", "import numba", "forbidden"),
        ("kernels", "from ..errors import EdgertError", "not this folder's"),
        ("kernels", "import onnx", "inside functions"),
        ("converters", "def f():\n    import transformers", "forbidden"),
        ("devices", "import numba", "forbidden"),
    ],
)
def test_the_judge_of_imports_can_say_no(folder: str, text: str, why: str) -> None:
    (found,) = imports_of(text, f"{PACKAGES[folder]}.some")
    said = complaint(folder, found)
    assert bool(said) == bool(why), said
    assert why in said


def fresh(code: str) -> str:
    """Standard output of a new interpreter that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_edgert_is_cheap() -> None:
    """In CPU time, which a busy machine does not lengthen much."""
    code = (
        "import time; start = time.process_time(); import edgert; "
        "print(time.process_time() - start)"
    )
    best = min(float(fresh(code)) for _ in range(3))
    print(f"import edgert: {best * 1e3:.1f} ms")
    assert best < 0.15


def test_importing_edgert_imports_nothing_heavy() -> None:
    code = "import sys, edgert; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(fresh(code).split())
    heavy = {"numba", "onnxruntime", "torch", "onnx", "transformers", "numpy", "tokenizers"}
    assert not loaded & heavy


@pytest.mark.parametrize(
    "name",
    [
        "kernels.encodings",
        "kernels.cpu.layout",
        "graph",
        "bundle.check",
        "bundle.describe",
        "kernels.cpu.code",
        "kernels.cpu.pack",
        "kernels.bandwidth",
        "forecast.latency",
        "session.cpu",
    ],
)
def test_formats_are_known_without_numba(name: str) -> None:
    code = f"import sys, edgert.{name}; print(*sorted({{n.split('.')[0] for n in sys.modules}}))"
    assert not set(fresh(code).split()) & {"numba", "llvmlite", "onnxruntime", "onnx", "torch"}


def test_running_a_bundle_imports_no_training_library(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    code = (
        f"import sys, edgert\n"
        f"with edgert.load({str(bundle)!r}) as model:\n"
        f"    model.generate('hello', max_tokens=2)\n"
        f"    model.chat([{{'role': 'user', 'content': 'hi'}}], max_tokens=2)\n"
        f"names = {{name.split('.')[0] for name in sys.modules}}\n"
        f"print(*sorted(names | {{n for n in sys.modules if n.startswith('edgert.')}}))"
    )
    loaded = set(fresh(code).split())
    assert "edgert.session.cpu" in loaded  # it did run
    assert not loaded & {"torch", "onnx", "transformers", "huggingface_hub"}
    assert not {name for name in loaded if name.startswith("edgert.converters")}
