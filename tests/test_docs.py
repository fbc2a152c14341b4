"""The pages for contributors say what is true: paths, names, tables and numbers are the code's."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from edgert.converters.sources.pipelines import PIPELINES
from edgert.converters.sources.schedulers import SUBSTITUTES
from edgert.kernels import isa, operands
from edgert.kernels.cpu import layout
from edgert.kernels.encodings import ENCODINGS
from edgert.kernels.ops import CATALOGUE, Attr, Op
from edgert.kernels.states import StateSpec

from edgert import limits, roles
from edgert.bundle import manifest
from edgert.session.lowering import Lowering
from edgert.session.onnx_check import metadata
from edgert.session.onnx_io import Variant
from edgert.session.onnx_names import PIECES, Emission

from .conftest import ROOT
from .test_imports import ANYWHERE, INSIDE
from .tiny import tiny_graph

PAGES = (
    "docs/architecture.md", "docs/bundle-format.md", "docs/checkpoints.md", "kernels/README.md",
)  # fmt: skip
TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}
FORMAT, ARCHITECTURE, KERNELS = (TEXTS[f"{name}.md"] for name in (
    "docs/bundle-format", "docs/architecture", "kernels/README",
))  # fmt: skip
FOLDERS = "edgert|kernels|converters|devices|tests|docs|benchmarks|recipes"


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert found is not None, f"no heading {title!r}"
    rest = text[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def rows(text: str) -> list[list[str]]:
    """Cells of the body rows of all tables in a text."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def firsts(text: str) -> list[str]:
    """First cells of the body rows, without their quotes."""
    return [cells[0].strip(" `") for cells in rows(text)]


# --- paths and names --------------------------------------------------------------------------


def spans() -> Iterator[tuple[str, str, str]]:
    """(page, path, name) of every code span that is a path, with what stands behind `::`. NAME
    stands for a file to be written."""
    pattern = re.compile(rf"`((?:{FOLDERS})/[\w./-]*|[A-Z]+\.md|pyproject\.toml)(?:::([\w.]+))?`")
    for page, text in TEXTS.items():
        for path, name in pattern.findall(text):
            if "NAME" not in path:
                yield page, path, name


def defined(tree: ast.AST) -> dict[str, ast.AST]:
    """What a module or a class defines, by name."""
    found: dict[str, ast.AST] = {}
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            found |= dict.fromkeys(names, node)
    return found


def fault(path: str, name: str) -> str:
    """Why a path or a name in it is not there, or ""."""
    place = ROOT / path
    if not place.exists() or place.is_dir() != path.endswith("/"):
        return "is not there"
    node: ast.AST = ast.parse(place.read_text(encoding="utf-8")) if name else ast.Pass()
    for part in filter(None, name.split(".")):
        if part not in defined(node):
            return f"has no {name}"
        node = defined(node)[part]
    return ""


def test_every_path_and_name_exists() -> None:
    found = list(spans())
    assert len(found) > 100
    bad = [f"{page}: {path} {why}" for page, path, name in found if (why := fault(path, name))]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize(
    ("path", "name", "why"),
    [
        ("edgert/graph.py", "Graph.cut", ""),
        ("kernels/ops.py", "CATALOGUE", ""),
        ("edgert/graph.py", "Graph.paste", "has no"),
        ("edgert/grph.py", "", "not there"),
        ("edgert/text", "", "not there"),
    ],
)
def test_the_judge_of_paths_can_say_no(path: str, name: str, why: str) -> None:
    said = fault(path, name)
    assert bool(said) == bool(why)
    assert why in said


def test_links_lead_somewhere() -> None:
    pages = {**TEXTS, "README.md": (ROOT / "README.md").read_text(encoding="utf-8")}
    for page, text in pages.items():
        for target in re.findall(r"\]\(([^)]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target:
                continue
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists(), f"{page}: {target}"
            heads = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
            assert not anchor or anchor in anchors, f"{page}: {target}"


def test_the_pages_are_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"]({page})" in readme for page in PAGES)


def test_no_path_of_a_workplace_is_in_them() -> None:
    for page, text in TEXTS.items():
        assert not re.search(r"(?<![.\w])/(work|root|home|tmp)/", text), page


# --- the format of bundles --------------------------------------------------------------------


def type_text(kind: msgspec.inspect.Type) -> str:
    """A field's type in the words of JSON."""
    plain = {
        msgspec.inspect.StrType: "string", msgspec.inspect.IntType: "integer",
        msgspec.inspect.FloatType: "number", msgspec.inspect.BoolType: "boolean",
        msgspec.inspect.NoneType: "null", msgspec.inspect.AnyType: "any",
    }  # fmt: skip
    if type(kind) in plain:
        return plain[type(kind)]
    if isinstance(kind, msgspec.inspect.StructType):
        return kind.cls.__name__
    if isinstance(kind, msgspec.inspect.DictType):
        return f"object of {type_text(kind.value_type)}"
    if isinstance(kind, msgspec.inspect.VarTupleType):
        return f"array of {type_text(kind.item_type)}"
    assert isinstance(kind, msgspec.inspect.UnionType), kind
    texts = sorted({type_text(each) for each in kind.types})
    return "state" if all(text.endswith("State") for text in texts) else " or ".join(texts)


def field_rows(struct: type[msgspec.Struct]) -> list[list[str]]:
    """Field, type and default of each field of a struct, as its table must show them."""
    info = msgspec.inspect.type_info(struct)
    assert isinstance(info, msgspec.inspect.StructType)
    found = []
    tag = [["`kind`", "string", f'`"{info.tag}"`']] if info.tag is not None else []
    for field in info.fields:
        default = "required"
        if not field.required:
            value = field.default
            if field.default_factory is not msgspec.NODEFAULT:
                value = field.default_factory()
            if isinstance(value, msgspec.Struct):
                value = {}
            default = f"`{msgspec.json.encode(value).decode()}`"
        found.append([f"`{field.encode_name}`", type_text(field.type), default])
    return tag + found


def struct_of(name: str) -> type[msgspec.Struct]:
    module, _, attribute = name.rpartition(".")
    found: type[msgspec.Struct] = getattr(importlib.import_module(module), attribute)
    return found


def test_tables_of_fields_are_the_structs() -> None:
    marks = re.findall(r"<!-- struct: ([\w.]+) -->\n((?:.+\n)+)", FORMAT)
    for name, table in marks:
        assert [cells[:3] for cells in rows(table)] == field_rows(struct_of(name)), name
    told = {struct_of(name) for name, _ in marks}
    kinds = set(StateSpec.__args__)
    wanted = {
        each
        for module in (
            "edgert.bundle.manifest",
            "edgert.bundle.image_spec",
            "edgert.bundle.origins",
            "edgert.graph",
        )
        for name, each in vars(importlib.import_module(module)).items()
        if isinstance(each, type) and issubclass(each, msgspec.Struct) and name[0] != "_"
    }
    assert told == wanted | kinds


def _attribute(name: str, attr: Attr) -> str:
    kind = {int: "integer", float: "number", str: "string", bool: "boolean"}[attr.type]
    default = "" if attr.default is ... else f" = {msgspec.json.encode(attr.default).decode()}"
    return f"`{name}` {kind}{default}"


def op_row(op: Op) -> list[str]:
    """An op's row of the table: inputs, weights, attributes, state."""
    inputs = ", ".join(f"`{n}`{' int32' if n in op.integer else ''}" for n in op.inputs)
    weights = ", ".join(
        f"`{slot}`{' any encoding' if slot in op.matrix else ''}{'' if needed else ' optional'}"
        for slot, needed in op.weights.items()
    )
    state = ""
    if op.state_of is not None:
        ones: dict[str, Any] = dict.fromkeys(op.attrs, 1)
        given = ({**ones, "values": 0}, ones) if "values" in ones else (ones,)
        kinds = [op.state_of(attrs).__struct_config__.tag for attrs in given]
        state = f"{'borrows' if op.borrows else 'owns'} {' or '.join(map(str, kinds))}"
    attrs = ", ".join(_attribute(*item) for item in op.attrs.items())
    return [f"`{op.name}`", inputs, weights or "–", attrs or "–", state or "–"]


def test_the_table_of_ops_is_the_catalogue() -> None:
    assert rows(section(FORMAT, "Ops")) == [op_row(op) for op in CATALOGUE.values()]


def test_the_table_of_encodings_is_the_code() -> None:
    found = rows(section(FORMAT, "Encodings"))
    wanted = []
    for row in ENCODINGS.values():
        tensors = ", ".join(f"`<name>{t.suffix}` {t.dtype}" for t in row.tensors)
        ranks = " to ".join(dict.fromkeys(map(str, (row.ranks[0], row.ranks[-1]))))
        wanted.append([f"`{row.name}`", str(row.bits), ranks, tensors])
    assert [cells[:4] for cells in found] == wanted


def test_roles_and_kinds_are_the_code() -> None:
    text = section(FORMAT, "Parts, roles and kinds")
    assert set(firsts(text)) == {*roles.ROLES, *roles.KINDS}
    for cells in rows(text):
        kind = cells[0].strip("`")
        if kind in roles.KINDS and len(cells) == 2:
            assert tuple(re.findall(r"`([\w-]+)`", cells[1])) == roles.KINDS[kind]


def test_limits_are_the_code() -> None:
    told = {cells[0].strip("`"): int(cells[1]) for cells in rows(section(FORMAT, "Limits"))}
    assert told == {name: getattr(limits, name) for name in told}
    files = [
        *(ROOT / "edgert" / "bundle").glob("*.py"), *(ROOT / "edgert" / "storage").glob("*.py"),
        *(ROOT / "edgert" / "session").glob("onnx_*.py"),
        *(ROOT / "edgert" / "text" / f"{n}.py" for n in ("tokenizer_check", "template")),
        ROOT / "edgert" / "graph.py",
    ]  # fmt: skip
    used = {
        name
        for file in files
        for name in re.findall(r"limits\.([A-Z]\w+)", file.read_text(encoding="utf-8"))
    }
    assert used - {"TEMPLATE_OUTPUT_BYTES", "TEMPLATE_SECONDS"} <= set(told)


def test_versions_and_sections_are_the_code() -> None:
    for version in manifest.FORMATS:
        assert f"## Format {version}" in FORMAT
    assert set(firsts(section(FORMAT, "Extensions"))) == set(manifest._EXTENSIBLE)


def test_refusals_have_codes_that_exist() -> None:
    told = firsts(section(FORMAT, "What is refused"))
    assert len(told) > 15
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "edgert").rglob("*.py"))
    derived = {code for code in told if code.endswith("-duplicate")}
    missing = [code for code in set(told) - derived if f'"{code}"' not in source]
    assert not missing


def test_variants_of_onnx_files_are_told() -> None:
    text, graph = section(FORMAT, "ONNX files"), tiny_graph()
    variant = Variant(True, True, 4, 8, embeddings=True, batch=True, fused=True)
    assert set(metadata(graph, variant, ("x1",))) == set(re.findall(r"`(edgert\.\w+)`", text))
    suffixes = re.findall(r"^\| `(\.[^`]+)`", text, re.MULTILINE)
    sizes = {"<rows>": "4", "<capacity>": "8"}
    joined = "".join(suffixes)
    for letters, size in sizes.items():
        joined = joined.replace(letters, size)
    assert variant.suffix == joined
    pieces = re.findall(r"^\| `([a-z]+)` \|", text, re.MULTILINE)
    assert tuple(pieces) == PIECES
    (name,) = re.findall(r"`(denoiser\.[^`]+)`", text)
    assert Emission.of_file("denoiser", name) == Emission(
        "denoiser", Variant(half=True), "body", (768, 512)
    )


def test_pipelines_of_pictures_are_the_code() -> None:
    wanted = []
    for name, row in PIPELINES.items():
        captions = f"{row.max_tokens} tokens" if row.max_tokens else "none: labels"
        numbers = [str(row.steps), str(row.guidance)]
        wanted.append([f"`{name}`", f"`{row.denoiser}`", captions, *numbers])
    wanted += [[f"`{name}`", f"`{row.kind}`"] for name, row in SUBSTITUTES.items()]
    assert rows(section(TEXTS["docs/checkpoints.md"], "Pipelines of pictures")) == wanted


# --- architecture --------------------------------------------------------------------------------


def test_the_table_of_folders_is_what_the_import_test_allows() -> None:
    found = {cells[0].strip("`/"): cells for cells in rows(section(ARCHITECTURE, "Folders"))}
    for folder, allowed in ANYWHERE.items():
        anywhere, inside = found[folder][2], found[folder][3]
        assert set(re.findall(r"`([\w]+)`", anywhere)) == allowed, folder
        assert set(re.findall(r"`([\w]+)`", inside)) == INSIDE[folder], folder


def uses(path: Path) -> Iterator[tuple[str, str]]:
    """(module or folder of edgert that a file stands in, one that it imports)."""
    parts = path.relative_to(ROOT / "edgert").with_suffix("").parts
    pattern = r"^ *from (\.+)([\w.]*) import \(?(.*)$"
    for dots, module, names in re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE):
        if len(dots) == len(parts):
            for name in [module] if module else names.split(", "):
                yield parts[0], name.split(".")[0]


def test_layers_use_what_stands_above_them() -> None:
    lines = re.findall(r"^\d\. (`edgert/.*)$", section(ARCHITECTURE, "Folders"), re.MULTILINE)
    level = {
        name: index
        for index, line in enumerate(lines)
        for name in re.findall(r"`edgert/(\w+)", line)
    }
    found = {path: list(uses(path)) for path in (ROOT / "edgert").rglob("*.py")}
    assert {user for pairs in found.values() for user, _ in pairs} <= {
        *level,
        "__init__",
        "__main__",
    }
    bad = [
        f"{path.relative_to(ROOT)} imports {used}"
        for path, pairs in found.items()
        for user, used in pairs
        if level.get(used, 0) > level.get(user, len(lines))
    ]
    assert not bad, "\n".join(bad)
    assert sum(map(len, found.values())) > 100


def test_the_instructions_of_a_layer_are_as_told() -> None:
    graph = tiny_graph(quant="int4", layers=1)
    steps = Lowering(graph, limits={"T": 64, "R": 64}, threads=2, kv_bits=16).steps
    told = [cells[:3] for cells in rows(section(ARCHITECTURE, "Instructions of a layer"))]
    assert told == [[f"`{s.kernel}`", s.rows, str(s.barrier)] for s in steps]


# --- kernels ----------------------------------------------------------------------------------


def test_every_kernel_is_in_the_table() -> None:
    kernels = {
        node.name
        for path in (ROOT / "kernels" / "cpu").glob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
        and any(isinstance(d, ast.Name) and d.id == "kernel" for d in node.decorator_list)
    }
    told = [name for cells in rows(section(KERNELS, "The kernels")) for name in
            re.findall(r"`(\w+)`", cells[0])]  # fmt: skip
    assert sorted(told) == sorted(kernels)


def test_sizes_are_the_code() -> None:
    places: list[ModuleType] = [layout, operands]
    for cells in rows(section(KERNELS, "Sizes")):
        name = cells[0].strip("`")
        values = [getattr(place, name) for place in places if hasattr(place, name)]
        assert values == [type(values[0])(cells[1].strip("`"))], name


def test_instruction_sets_are_the_code() -> None:
    found = {cells[0].strip("`"): cells for cells in rows(section(KERNELS, "Instruction sets"))}
    assert set(found) >= set(isa.NEEDS)
    for name, needs in isa.NEEDS.items():
        assert set(re.findall(r"`(\w+)`", found[name][1])) == set(needs), name
    assert isa.VARIABLE in KERNELS


def test_tolerances_are_those_of_the_test() -> None:
    test = (ROOT / "tests" / "kernels" / "test_catalogue.py").read_text(encoding="utf-8")
    limits_of = {
        name: float(value) for name, value in re.findall(r"^([A-Z]+) = (\de-\d)", test, re.M)
    }
    told = {cells[0].strip("`"): float(cells[1]) for cells in rows(section(KERNELS, "Tolerances"))}
    assert told == limits_of
