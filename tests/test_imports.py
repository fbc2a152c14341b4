"""Who may import whom (the table of rooms), and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import ROOT
from .tiny import tiny_bundle

ROOMS = {
    "edgert": "edgert",
    "kernels": "edgert.kernels",
    "converters": "edgert.converters",
    "devices": "edgert.devices",
}
CORE = {
    "numpy", "numba", "llvmlite", "onnxruntime", "tokenizers", "safetensors", "jinja2", "click",
    "msgspec", "tqdm", "platformdirs", "psutil",
}  # fmt: skip
# Third-party packages a room may import: anywhere, and inside functions only.
ANYWHERE = {
    "edgert": CORE - {"numba", "llvmlite", "onnxruntime"},
    "kernels": {"numpy", "numba", "llvmlite"},
    "converters": {"numpy", "msgspec", "tqdm", "safetensors", "torch", "tokenizers"},
    "devices": {"msgspec", "psutil", "numpy"},
}
INSIDE = {
    "edgert": {"numba", "llvmlite", "onnxruntime", "PIL"},
    "kernels": {"onnx"},
    "converters": {"onnx", "gguf", "huggingface_hub", "onnxruntime", "psutil"},
    "devices": set[str](),
}
# What of edgert each room may import anywhere: module prefixes. edgert.converters: functions only.
OWN = {
    "edgert": ("edgert",),
    "kernels": ("edgert.kernels",),
    "converters": ("edgert",),
    "devices": ("edgert.devices",),
}


class Import:
    """One import statement: the full module name, where it stands, whether it runs at import."""

    def __init__(self, name: str, line: int, *, top: bool) -> None:
        self.name, self.line, self.top = name, line, top
        self.root = name.split(".")[0]


def sources(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if "__pycache__" not in path.parts)


def module_of(path: Path, room: str) -> str:
    parts = path.relative_to(ROOT / room).with_suffix("").parts
    return ".".join([ROOMS[room], *parts])


def imports_of(path: Path, module: str) -> Iterator[Import]:
    """All imports of a file but those under `if TYPE_CHECKING`."""
    package = module.rsplit(".", 1)[0]

    def walk(node: ast.AST, top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from (Import(a.name, child.lineno, top=top) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    up = package.rsplit(".", child.level - 1)[0] if child.level > 1 else package
                    base = f"{up}.{base}".rstrip(".")
                yield from (Import(f"{base}.{a.name}", child.lineno, top=top) for a in child.names)
            else:
                inner = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, top and not inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def complaint(room: str, found: Import) -> str:
    """Why an import is not allowed in a room, or nothing."""
    if found.root in sys.stdlib_module_names:
        return ""
    if found.root == "edgert":
        if not found.name.startswith(OWN[room]):
            return "is not this room's to import"
        if room == "edgert" and found.top and found.name.startswith("edgert.converters"):
            return "is for inside functions only"
        return ""
    if found.root in ANYWHERE[room] or (found.root in INSIDE[room] and not found.top):
        return ""
    return "is for inside functions only" if found.root in INSIDE[room] else "is forbidden here"


@pytest.mark.parametrize("room", list(ROOMS))
def test_rooms_import_only_what_they_may(room: str) -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{found.line}: {found.name} {why}"
        for path in sources(room)
        for found in imports_of(path, module_of(path, room))
        if (why := complaint(room, found))
    ]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("room", "text", "why"),
    [
        ("edgert", "import torch", "forbidden"),
        ("edgert", "def f():\n    import onnx", "forbidden"),
        ("edgert", "from .converters.convert import convert", "inside functions"),
        ("edgert", "def f():\n    from .converters.convert import convert", ""),
        ("edgert", "import numba", "inside functions"),
        ("kernels", "from ..errors import EdgertError", "not this room's"),
        ("kernels", "import onnx", "inside functions"),
        ("converters", "def f():\n    import transformers", "forbidden"),
        ("devices", "import numba", "forbidden"),
    ],
)
def test_the_judge_of_imports_can_say_no(tmp_path: Path, room: str, text: str, why: str) -> None:
    path = tmp_path / "some.py"
    path.write_text(text, encoding="utf-8")
    (found,) = imports_of(path, f"{ROOMS[room]}.some")
    said = complaint(room, found)
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
    code = (
        "import time; start = time.perf_counter(); import edgert; "
        "print(time.perf_counter() - start)"
    )
    best = min(float(fresh(code)) for _ in range(3))
    print(f"import edgert: {best * 1e3:.1f} ms")
    assert best < 0.25


def test_importing_edgert_imports_nothing_heavy() -> None:
    code = "import sys, edgert; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(fresh(code).split())
    heavy = {"numba", "onnxruntime", "torch", "onnx", "transformers", "numpy", "tokenizers"}
    assert not loaded & heavy


@pytest.mark.parametrize(
    "name",
    ["kernels.encodings", "kernels.cpu.layout", "graph", "bundle.check", "bundle.describe"],
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
