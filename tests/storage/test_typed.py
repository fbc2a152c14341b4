"""msgspec types are built when modules are imported, under a lock: a second thread that meets a
type half built would end the process."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from edgert.storage.typed import Reader

from ..conftest import ROOT
from ..tiny import tiny_bundle

BUILDING = {"convert", "Decoder", "decode"}


def typed_reads(text: str) -> list[int]:
    """Lines that read a msgspec type themselves."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            typed = node.func.attr != "decode" or any(k.arg == "type" for k in node.keywords)
            if name.startswith("msgspec.") and node.func.attr in BUILDING and typed:
                found.append(node.lineno)
    return found


def test_every_type_is_read_by_a_reader() -> None:
    files = [
        p for f in ("edgert", "kernels", "converters", "devices") for p in (ROOT / f).rglob("*.py")
    ]
    found = {p.relative_to(ROOT).as_posix(): typed_reads(p.read_text("utf-8")) for p in files}
    # The kernels import nothing of edgert; theirs are made once, where the module is imported.
    both = {"edgert/storage/typed.py", "kernels/library.py"}
    assert {name for name, lines in found.items() if lines} == both


def test_the_judge_sees_such_reads() -> None:
    text = "msgspec.convert(x, T)\nmsgspec.json.decode(x, type=T)\nmsgspec.json.Decoder(T)"
    assert typed_reads(text + "\nmsgspec.json.decode(x)") == [1, 2, 3]


def test_nothing_is_built_once_modules_are_imported(tmp_path: Path) -> None:
    """What msgspec asks of a type, it asks by a Python function, which a profiler sees."""
    bundle = tiny_bundle(tmp_path / "tiny.edge")
    code = (
        f"import sys, edgert, edgert.api, edgert.session.reference, edgert.text.model\n"
        f"built = []\n"
        f"def look(frame, event, arg):\n"
        f"    if event == 'call' and frame.f_code.co_name == 'get_class_annotations':\n"
        f"        built.append(frame.f_back.f_code.co_filename)\n"
        f"sys.setprofile(look)\n"
        f"with edgert.load({str(bundle)!r}, device='reference') as model:\n"
        f"    model.generate('hello', max_tokens=2)\n"
        f"sys.setprofile(None)\n"
        f"print(built)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_readers_made_in_many_threads_at_once() -> None:
    class Leaf(msgspec.Struct):
        number: int

    class Tree(msgspec.Struct):
        leaves: list[Leaf]

    Tree.__annotations__["leaves"] = list[Leaf]
    barrier, found = threading.Barrier(8), []

    def read() -> None:
        barrier.wait()
        found.append(Reader(Tree).decode(json.dumps({"leaves": [{"number": 3}]}).encode()))

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Tree([Leaf(3)])] * 8


def test_a_reader_refuses_what_msgspec_refuses() -> None:
    reader = Reader(dict[str, int])
    assert reader.convert({"a": 1}) == reader.decode(b'{"a":1}') == {"a": 1}
    with pytest.raises(msgspec.ValidationError):
        reader.convert({"a": "b"})
    with pytest.raises(msgspec.DecodeError):
        reader.decode(b"{")
