"""Beginnings that are kept on disk: later processes go on from them, and nobody's text changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgert.kernels import library
from edgert.kernels.states import RecurrentState

import edgert
from edgert.cli import run
from edgert.demo import image_bundle
from edgert.errors import DeviceError, RequestError, ResourceError
from edgert.session.cpu import CpuSession
from edgert.session.pages import PAGE_TOKENS
from edgert.session.plan import bytes_per_page
from edgert.session.prefix_disk import PrefixDisk
from edgert.session.prefix_files import PrefixFiles, key_of, root_of
from edgert.session.prompt_cache import most_of
from edgert.storage import tree_file
from edgert.text.model import TextModel

from ..fresh import python
from ..tiny import tiny_bundle, tiny_graph
from .speculative.heads import target
from .speculative.models import NO_END, cpu_session, sessions, text_model
from .test_prefixes import SYSTEM, answer, assert_nothing_is_held, cache_of, shared, soak

OWNER = "0123456789abcdef" * 4
HYBRID = ("lfm2", "qwen3_next", "mamba2")
KINDS = ("kv", "kv8", "window", "tail", "whole", *HYBRID)
QUESTIONS = ("What?", "Who is it?", "What?", "Wh")


def opened(kind: str, kernels: Path) -> Any:
    """A session whose states are of a kind, the same model each time."""
    if kind in HYBRID:
        graph, weights = target(kind)
        return CpuSession(graph, weights, threads=1, cache=kernels)
    return sessions(kernels)[kind]()


def kept(session: Any, folder: Path, *, budget: int = 1 << 30, owner: str = OWNER) -> TextModel:
    """A model that keeps beginnings in a folder."""
    model = shared(session)
    cache = cache_of(model)
    cache.disk = PrefixDisk(cache, PrefixFiles(folder, owner, budget, most_of(cache)))
    return model


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*-*") if path.is_file())


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_later_model_goes_on_with_the_same_text(
    kind: str, kernel_folder: Path, tmp_path: Path
) -> None:
    session = opened(kind, kernel_folder)
    plain = text_model(session)
    expected = [answer(plain, SYSTEM + question).token_ids for question in QUESTIONS]
    with kept(session, tmp_path) as first:
        got = [answer(first, SYSTEM + question) for question in QUESTIONS]
        assert [g.token_ids for g in got] == expected
        assert got[0].usage.cached_tokens == 0
    assert files_in(tmp_path)
    with kept(opened(kind, kernel_folder), tmp_path) as later:
        again = [answer(later, SYSTEM + question) for question in QUESTIONS]
        assert [g.token_ids for g in again] == expected
        assert again[0].usage.cached_tokens == len(SYSTEM) + len(QUESTIONS[0]) - 1
        assert again[2].usage.cached_tokens == len(SYSTEM) + len(QUESTIONS[2]) - 1
        assert_nothing_is_held(later)
    with kept(opened(kind, kernel_folder), tmp_path) as third:
        other = answer(third, SYSTEM + "Another one?")
        alone = text_model(third.session)
        assert other.token_ids == answer(alone, SYSTEM + "Another one?").token_ids
        recurrent = kind in ("tail", "whole", *HYBRID)
        assert other.usage.cached_tokens >= (256 if recurrent else len(SYSTEM))
        assert_nothing_is_held(third)


@pytest.mark.parametrize("kind", ["qwen3_next", "mamba2"])
def test_rounded_states_come_back_as_they_were(
    kind: str, kernel_folder: Path, tmp_path: Path
) -> None:
    """Later processes go on from the very bits that the first one goes on from, in smaller
    files."""
    graph, weights = target(kind)
    prompts = [SYSTEM + question for question in ("What?", "Who is it?")]
    sizes = {}
    for bits in (32, 16):
        got, states = [], []
        for _ in range(2):
            session = CpuSession(graph, weights, threads=1, cache=kernel_folder, snapshot_bits=bits)
            with kept(session, tmp_path / str(bits)) as model:
                if not got:
                    for prompt in prompts:
                        answer(model, prompt)
                again = [answer(model, prompt) for prompt in prompts]
                assert all(a.usage.cached_tokens >= len(SYSTEM) for a in again)
                got.append([a.token_ids for a in again])
                cache, ids = cache_of(model), model.tokenize(prompts[0])
                states.append(cache.resumable(*cache.match(ids, ("", False)))[1])
        assert got[0] == got[1]
        assert_same(*states)
        found = [path.stat().st_size for path in files_in(tmp_path / str(bits))]
        sizes[bits] = sum(found)
    specs = [s for s in graph.states.values() if isinstance(s, RecurrentState)]
    matrices = 4 * sum(s.heads * s.key_dim * s.value_dim for s in specs)
    count = sum(path.suffix == ".state" for path in files_in(tmp_path / "16"))
    assert sizes[32] - sizes[16] == pytest.approx(count * matrices / 2, rel=0.02)


def assert_same(one: Any, other: Any) -> None:
    """Recurrent content, bit for bit and in the same precision."""
    assert one.keys() == other.keys()
    for name, parts in one.items():
        for key, value in parts.items():
            assert np.asarray(value).dtype == np.asarray(other[name][key]).dtype
            assert np.array_equal(value, other[name][key])


@pytest.mark.parametrize("kind", ["kv8", "whole", "lfm2"])
def test_an_answer_is_a_beginning_as_well(kind: str, kernel_folder: Path, tmp_path: Path) -> None:
    with kept(opened(kind, kernel_folder), tmp_path) as model:
        first = answer(model, SYSTEM, max_tokens=80)
        text = [*model.tokenize(SYSTEM), *first.token_ids, 70, 71]
        expected = answer(text_model(model.session), text).token_ids
    with kept(opened(kind, kernel_folder), tmp_path) as later:
        again = answer(later, text, draft=edgert.DraftOptions("ngram", adapt=False))
        assert again.token_ids == expected
        assert again.usage.cached_tokens >= len(text) - 3


def test_a_page_that_grew_replaces_its_shorter_file(kernel_folder: Path, tmp_path: Path) -> None:
    with kept(cpu_session(kernel_folder), tmp_path) as model:
        text = model.tokenize("a few words, ")
        for _ in range(3):
            text = [*text, *answer(model, text, max_tokens=9).token_ids]
            cache_of(model).close()
    assert len(files_in(tmp_path)) == 1
    with kept(cpu_session(kernel_folder), tmp_path) as later:
        assert answer(later, text).usage.cached_tokens >= len(text) - 2


def test_what_is_known_is_not_written_twice(kernel_folder: Path, tmp_path: Path) -> None:
    for _ in range(2):
        with kept(cpu_session(kernel_folder), tmp_path) as model:
            answer(model, SYSTEM)
        if _ == 0:
            before = {path: path.stat().st_ino for path in files_in(tmp_path)}
    assert {path: path.stat().st_ino for path in files_in(tmp_path)} == before


def test_a_full_pool_brings_in_what_fits(kernel_folder: Path, tmp_path: Path) -> None:
    prompts = [f"{i}" + "abcdefgh " * 50 for i in range(6)]
    plain = text_model(cpu_session(kernel_folder))
    expected = [answer(plain, prompt).token_ids for prompt in prompts]
    with kept(cpu_session(kernel_folder), tmp_path) as model:
        assert [answer(model, prompt).token_ids for prompt in prompts] == expected
    page = bytes_per_page(tiny_graph(quant="int4", context=512), 16)
    small = cpu_session(kernel_folder, context=512, kv_memory=12 * page)
    with kept(small, tmp_path) as later:
        got = [answer(later, prompt) for prompt in prompts]
        assert [g.token_ids for g in got] == expected
        assert sum(g.usage.cached_tokens for g in got) > 1000
        assert cache_of(later).nbytes <= cache_of(later).budget
        assert_nothing_is_held(later)


# --- who may use what ----------------------------------------------------------------------------


def cached(path: Path, folder: Path, **options: Any) -> tuple[int, tuple[int, ...]]:
    with edgert.load(path, threads=1, prompt_cache=folder, **options) as model:
        got = answer(model, SYSTEM)
        return got.usage.cached_tokens, got.token_ids


def test_models_quantisations_and_rotary_settings_do_not_mix(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    graph = tiny_graph(context=512)
    made = tiny_bundle(tmp_path / "a.edge", graph=graph)
    assert cached(made, folder)[0] == 0
    whole = len(SYSTEM) - 1
    assert cached(made, folder)[0] == whole
    attention = next(i for i, n in enumerate(graph.nodes) if n.op == "attention")
    turned = graph.nodes[attention]
    turned = type(turned)(
        turned.op, turned.inputs, turned.output, turned.weights,
        {**turned.attrs, "scale": 0.2}, turned.state,
    )  # fmt: skip
    nodes = (*graph.nodes[:attention], turned, *graph.nodes[attention + 1 :])
    others = [
        tiny_bundle(tmp_path / "b.edge", graph=graph, seed=1),
        tiny_bundle(tmp_path / "c.edge", context=512, quant="int8"),
        tiny_bundle(tmp_path / "d.edge", graph=graph.replace(nodes=nodes)),
    ]
    for path in others:
        count, tokens = cached(path, folder)
        assert count == 0
        with edgert.load(path, threads=1) as model:
            assert tokens == answer(model, SYSTEM).token_ids
    for bits in (8, 4, 32):
        assert cached(made, folder, kv_bits=bits)[0] == 0
        assert cached(made, folder, kv_bits=bits)[0] == whole
    assert cached(made, folder, ctx_size=400)[0] == whole, "a context changes no bits"
    assert len(list(folder.iterdir())) == 7


def test_rounded_and_whole_states_do_not_mix(tmp_path: Path) -> None:
    graph, weights = target("mamba2")
    made = tiny_bundle(tmp_path / "a.edge", graph=graph, weights=weights)
    whole, expected = len(SYSTEM) - 1, cached(made, tmp_path / "other")[1]
    for bits in (16, 32):
        assert cached(made, tmp_path / "cache", snapshot_bits=bits) == (0, expected)
        assert cached(made, tmp_path / "cache", snapshot_bits=bits)[0] == whole
    assert cached(made, tmp_path / "cache", snapshot_bits=32) == (whole, expected)


def test_files_of_another_model_are_passed_over(
    kernel_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with kept(cpu_session(kernel_folder), tmp_path, owner=OWNER[::-1]) as model:
        answer(model, SYSTEM)
    expected = answer(text_model(cpu_session(kernel_folder, seed=3)), SYSTEM).token_ids
    with kept(cpu_session(kernel_folder, seed=3), tmp_path) as other:
        for path in files_in(tmp_path):  # under the names that this model would look for
            root = cache_of(other).disk.root(("", False))  # type: ignore[union-attr]
            folder = tmp_path / OWNER[:32] / root
            folder.mkdir(exist_ok=True)
            if "-0-64" in path.name:
                key = key_of(root, other.tokenize(SYSTEM)[:64])
                (folder / f"{key}-0-64.page").write_bytes(path.read_bytes())
        got = answer(other, SYSTEM)
        assert got.token_ids == expected
        assert got.usage.cached_tokens == 0
    assert "its owner is" in caplog.text


def test_adapters_have_beginnings_of_their_own(tmp_path: Path) -> None:
    kinds = [("", False), ("", True), ("one", False), ("other", False)]
    roots = {root_of(o, a, long_rope=b) for o in (OWNER, OWNER[::-1]) for a, b in kinds}
    assert len(roots) == 8


def unreadable() -> str:
    raise library.LibraryError("the kernel sources cannot be read")


def test_devices_that_share_nothing_say_so(tmp_path: Path) -> None:
    path = tiny_bundle(tmp_path / "a.edge")
    with pytest.raises(DeviceError, match="a prompt cache on 'reference'"):
        edgert.load(path, device="reference", prompt_cache=tmp_path / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "sources_hash", unreadable)
        with pytest.raises(DeviceError, match="sources cannot be read, so that nobody can tell"):
            edgert.load(path, prompt_cache=tmp_path / "cache")
    with pytest.raises(RequestError, match="expected a folder prompt_cache with it"):
        edgert.load(path, prompt_cache_size=1 << 20)
    for wrong in ({"prompt_cache": ""}, {"prompt_cache": 3}):
        with pytest.raises(RequestError, match="the path of a folder"):
            edgert.load(path, **wrong)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="prompt_cache_size is 0 bytes"):
        edgert.load(path, prompt_cache=tmp_path / "cache", prompt_cache_size=0)


def test_the_flags_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = tiny_bundle(tmp_path / "a.edge", context=512), tmp_path / "cache"
    said = []
    for verb in ("generate", "generate", "chat"):
        kept_in = ("--prompt-cache", str(folder), "--prompt-cache-size", "1M")
        assert run([verb, str(path), "-p", SYSTEM, "-n", "5", "--json", *kept_in]) == 0
        said.append(json.loads(capsys.readouterr().out))
    assert [answer["cached_tokens"] for answer in said] == [0, len(SYSTEM) - 1, 0]
    assert said[0]["token_ids"] == said[1]["token_ids"]
    for wrong, told in (
        (("--prompt-cache", str(folder), "--device", "reference"), "expected the device cpu"),
        (("--prompt-cache-size", "1M"), "expected a folder prompt_cache with it"),
        (("--prompt-cache", str(path / "manifest.json")), "cannot be used for the prompt cache"),
    ):
        assert run(["generate", str(path), "-p", "Once", "-n", "1", *wrong]) == 2
        assert told in capsys.readouterr().err


def test_a_model_that_draws_has_no_beginnings(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="which is of kind 'image'"):
        edgert.load(image_bundle(), kind="image", prompt_cache=tmp_path)


# --- room ----------------------------------------------------------------------------------------


def test_what_was_not_used_for_longest_goes_first(kernel_folder: Path, tmp_path: Path) -> None:
    prompts = [f"{i}" + "abcdefgh " * 40 for i in range(4)]
    with kept(cpu_session(kernel_folder), tmp_path) as model:
        answer(model, prompts[0])
        cache_of(model).close()
        each = sum(path.stat().st_size for path in files_in(tmp_path))
        for path in files_in(tmp_path):
            os.utime(path, ns=(1, 1))  # long ago
    budget = int(3.4 * each)
    for number in (1, 2, 0, 3):  # 0 is used again before there is too little room
        with kept(cpu_session(kernel_folder), tmp_path, budget=budget) as model:
            answer(model, prompts[number])
        assert sum(path.stat().st_size for path in files_in(tmp_path)) <= budget
    with kept(cpu_session(kernel_folder), tmp_path) as model:
        known = [answer(model, prompt).usage.cached_tokens for prompt in prompts]
    assert known[0] == known[3] == len(prompts[0]) - 1
    assert known[1] < known[2] or known[1] == 0, "the oldest went, from its end"
    assert all(path.parent.name != path.name for path in files_in(tmp_path))


def test_beginnings_go_after_what_stands_behind_them(kernel_folder: Path, tmp_path: Path) -> None:
    with kept(cpu_session(kernel_folder), tmp_path) as model:
        answer(model, "abcdefgh " * 60)
    whole = sum(path.stat().st_size for path in files_in(tmp_path))
    files = PrefixFiles(tmp_path, OWNER, whole // 2, 1 << 20)
    files.limit()
    starts = sorted(int(path.name.split("-")[1]) for path in files_in(tmp_path))
    assert starts == [PAGE_TOKENS * i for i in range(len(starts))]
    assert 2 <= len(starts) <= 5


def test_a_disk_without_room_only_ends_the_writing(
    kernel_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    expected = answer(text_model(cpu_session(kernel_folder)), SYSTEM).token_ids
    monkeypatch.setattr(Path, "write_bytes", full)
    with kept(cpu_session(kernel_folder), tmp_path) as model:
        for _ in range(2):
            assert answer(model, SYSTEM).token_ids == expected
    assert caplog.text.count("is not written any more") == 1
    assert not files_in(tmp_path)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "a.edge")
    (tmp_path / "file").write_text("mine", "utf-8")
    with pytest.raises(ResourceError, match="cannot be used for the prompt cache"):
        edgert.load(bundle, prompt_cache=tmp_path / "file")
    if os.name == "nt":
        return
    folder = tmp_path / "open"
    edgert.load(bundle, prompt_cache=folder).close()
    (inner,) = folder.iterdir()
    for opened in (inner, folder):
        opened.chmod(0o777)
        with pytest.raises(ResourceError, match=f"{opened.name} can be written by everybody"):
            edgert.load(bundle, prompt_cache=folder)
        opened.chmod(0o700)
    assert folder.stat().st_mode & 0o77 == 0
    found = os.stat_result((0o40700, 1, 1, 1, os.geteuid() + 1, 1, 1, 1, 1, 1))
    files = PrefixFiles(tmp_path / "other", OWNER, 1, 1)
    if os.geteuid():
        with pytest.raises(ResourceError, match="belongs to user"):
            files._check_private(files.folder, found)


# --- files that are not what they were -----------------------------------------------------------


def edited(path: Path, change: Callable[[dict[str, Any]], Any], **metadata: str) -> None:
    """Change the tree of a file, whose checksum is right again: what a stranger could do."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    told = header["__metadata__"]
    tree = json.loads(told["tree"])
    tree = change(tree) or tree
    told |= {"tree": json.dumps(tree), **metadata}
    dtypes = {"U8": "u1", "F32": "<f4"}
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            count, start = int(np.prod(entry["shape"])), 8 + size + entry["data_offsets"][0]
            flat = np.frombuffer(raw, dtypes[entry["dtype"]], count, start)
            arrays[name] = flat.reshape(entry["shape"])
    told["digest"] = tree_file._digest(told["tree"], arrays)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + size :])


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-100] ^= 1
    path.write_bytes(raw)


def replaced(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def harm(path: Path) -> None:
        path.unlink()
        make(path)

    return harm


def nested(tree: dict[str, Any]) -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    tree["page"] = deep


HARMS: dict[str, Callable[[Path], Any]] = {
    "flipped": flipped,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(500)),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(8)),
    "header": lambda path: path.write_bytes((1 << 63).to_bytes(8, "little") + bytes(99)),
    "huge": lambda path: os.truncate(path, 1 << 40),
    "link": replaced(lambda path: path.symlink_to("/dev/zero")),
    "loop": replaced(lambda path: path.symlink_to(path)),
    "fifo": replaced(os.mkfifo),
    "folder": replaced(Path.mkdir),
    "owner": lambda path: edited(path, lambda tree: None, owner="f" * 64),
    "version": lambda path: edited(path, lambda tree: None, format="edgert-beginning-9"),
    "name": lambda path: edited(path, lambda tree: tree.update(name="other")),
    "tokens": lambda path: edited(path, lambda tree: tree["tokens"].__setitem__(3, 9)),
    "no tokens": lambda path: edited(path, lambda tree: tree.update(tokens=None)),
    "few tokens": lambda path: edited(path, lambda tree: tree["tokens"].pop()),
    "odd tokens": lambda path: edited(path, lambda tree: tree["tokens"].__setitem__(3, 1 << 40)),
    "no arrays": lambda path: edited(path, lambda tree: tree.update(page={}, state={})),
    "no such array": lambda path: edited(
        path, lambda tree: tree.update(page={tree_file.ARRAY: "a999"})
    ),
    "an array as name": lambda path: edited(
        path, lambda tree: tree.update(page={tree_file.ARRAY: []})
    ),
    "a list": lambda path: edited(path, lambda tree: [tree]),
    "nested": lambda path: edited(path, nested),
}


@pytest.mark.skipif(os.name == "nt", reason="links and FIFOs of POSIX")
@pytest.mark.parametrize(
    ("kind", "harm"),
    [("kv", harm) for harm in HARMS]
    + [(kind, harm) for kind in ("kv8", "tail", "lfm2") for harm in ("flipped", "tokens")],
)
def test_h37_damaged_files_are_passed_over_and_written_again(
    kind: str, harm: str, kernel_folder: Path, good: Callable[[str], Path], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = tmp_path / "cache"
    shutil.copytree(good(kind), folder)
    before = files_in(folder)
    for path in before:
        HARMS[harm](path)
    with kept(opened(kind, kernel_folder), folder) as model:
        expected = answer(text_model(model.session), SYSTEM).token_ids
        got = answer(model, SYSTEM)
        assert got.token_ids == expected
        assert got.usage.cached_tokens == 0
        cache_of(model).close()
        assert_nothing_is_held(model)
    assert "passed over" in caplog.text or harm == "folder"
    if harm == "folder":
        return  # what is no file is nobody's here
    with kept(opened(kind, kernel_folder), folder) as model:
        again = answer(model, SYSTEM)
        assert again.token_ids == expected
        assert again.usage.cached_tokens == len(SYSTEM) - 1


@pytest.fixture(scope="module")
def good(kernel_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with what a model of a kind wrote."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("good") / "cache"
            with kept(opened(kind, kernel_folder), made[kind]) as model:
                answer(model, SYSTEM)
        return made[kind]

    return folder


STATE_HARMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "fold": lambda parts: parts.update(fold=1 << 40),
    "negative": lambda parts: parts.update(fold=-1),
    "true": lambda parts: parts.update(fold=True),
    "missing": lambda parts: parts.pop("tail"),
    "more": lambda parts: parts.update(more=1),
    "number": lambda parts: parts.update(tail=3),
}


@pytest.mark.parametrize("harm", STATE_HARMS)
def test_h37_recurrent_states_that_lie_are_passed_over(
    harm: str, kernel_folder: Path, good: Callable[[str], Path], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = tmp_path / "cache"
    shutil.copytree(good("tail"), folder)
    for path in files_in(folder):
        edited(path, lambda tree: STATE_HARMS[harm](tree["state"]["s"]) and None)
    with kept(opened("tail", kernel_folder), folder) as model:
        got = answer(model, SYSTEM)
        assert got.token_ids == answer(text_model(model.session), SYSTEM).token_ids
        assert got.usage.cached_tokens == 0
    assert "its state 's' is damaged" in caplog.text


def test_a_file_that_nobody_wrote_for_it_is_left_alone(kernel_folder: Path, tmp_path: Path) -> None:
    names = ["notes.txt", f"{OWNER[:32]}/README", f"{OWNER[:32]}/{'0' * 32}/x-0-64.page"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine", "utf-8")
    with kept(cpu_session(kernel_folder), tmp_path, budget=1) as model:
        answer(model, SYSTEM)
    assert [(tmp_path / name).read_text("utf-8") for name in names] == ["mine"] * 3
    assert not [
        path for path in files_in(tmp_path) if path.suffix == ".page" and "x-" not in str(path)
    ]


# --- processes -----------------------------------------------------------------------------------

ASK = """
import os, signal, sys, edgert
path, folder, prompt, harm = sys.argv[1:]
model = edgert.load(path, threads=1, prompt_cache=folder)
if harm == "killed":
    os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
got = model.generate(prompt, max_tokens=12, temperature=1.0, seed=4, logit_bias={1: -100.0})
print(got.usage.cached_tokens, *got.token_ids)
if harm == "forked":
    child = os.fork()
    if child == 0:
        model.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


def asked(path: Path, folder: Path, prompt: str = SYSTEM, harm: str = "") -> tuple[int, list[int]]:
    """What a process of its own answers, which does not close its model: cached, and tokens."""
    done = python(ASK, str(path), str(folder), prompt, harm)
    assert done.returncode == (-signal.SIGKILL if harm == "killed" else 0), done.stderr
    if not done.stdout:
        return 0, []
    count, *tokens = map(int, done.stdout.split())
    return count, tokens


@pytest.mark.skipif(os.name == "nt", reason="signals and forks of POSIX")
def test_processes_one_after_the_other(tmp_path: Path) -> None:
    path, folder = tiny_bundle(tmp_path / "a.edge", context=512), tmp_path / "cache"
    with edgert.load(path, threads=1) as model:
        expected = list(answer(model, SYSTEM).token_ids)
    assert asked(path, folder, harm="killed")[0] == 0
    assert list(folder.rglob("*.partial-*")), "the killed process left its half"
    assert asked(path, folder, harm="forked") == (0, expected)
    assert not list(folder.rglob("*.partial-*"))
    assert asked(path, folder) == (len(SYSTEM) - 1, expected)


def test_two_at_once(kernel_folder: Path, tmp_path: Path) -> None:
    """Two models that write and remove each other's files."""
    plain = text_model(cpu_session(kernel_folder))
    prompts = [SYSTEM[: 64 + 40 * i] + "?" for i in range(6)]
    expected = [answer(plain, prompt).token_ids for prompt in prompts]
    size = 6 * most_of_page(plain.session)

    def job(_: int) -> list[tuple[int, ...]]:
        got = []
        for _ in range(3):
            with kept(cpu_session(kernel_folder), tmp_path, budget=size) as model:
                got += [answer(model, prompt).token_ids for prompt in prompts]
        return got

    with ThreadPoolExecutor(2) as pool:
        for got in pool.map(job, range(2)):
            assert got == expected * 3


def most_of_page(session: Any) -> int:
    return int(session.pool.bytes_per_page)


def test_eight_conversations_of_a_later_process_hold_the_prompt_once(
    kernel_folder: Path, tmp_path: Path
) -> None:
    with kept(cpu_session(kernel_folder), tmp_path) as model:
        model.conversation(SYSTEM).say("?", max_tokens=4, **NO_END)
    with kept(cpu_session(kernel_folder), tmp_path) as model:
        pool: Any = model.session.pool  # type: ignore[attr-defined]
        chats = [model.conversation(SYSTEM) for _ in range(8)]

        def first(i: int) -> int:
            got = chats[i].say(f"{i}?", max_tokens=4, seed=i, **NO_END)
            return int(got.usage.cached_tokens)

        with ThreadPoolExecutor(8) as threads:
            assert min(threads.map(first, range(8))) >= len(SYSTEM)
        whole = len(SYSTEM) // PAGE_TOKENS
        states: list[Any] = [chat._memory._content[0] for chat in chats if chat._memory._content]
        assert len(states) == 8
        for index in range(whole):
            assert len({state.pages[index] for state in states}) == 1
        assert pool.pages - pool.indices.free <= whole + 8 * 2 + 8
        for chat in chats:
            chat.close()
        assert_nothing_is_held(model)


# --- a soak --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["kv", "tail"])
@pytest.mark.parametrize(
    "count", [24, pytest.param(2000, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_a_soak_with_a_small_disk(
    kind: str, count: int, kernel_folder: Path, tmp_path: Path
) -> None:
    """Both the tree and the disk are too small for what is asked."""
    session = opened(kind, kernel_folder)
    budget = 1 << 18 if kind == "kv" else 1 << 16
    with kept(session, tmp_path, budget=budget) as model:
        cache_of(model).budget = min(cache_of(model).budget, 1 << 17)
        soak(model, count, 5)
        assert_nothing_is_held(model)
    assert sum(path.stat().st_size for path in files_in(tmp_path)) <= budget


@pytest.mark.slow
def test_another_process_starts_at_once(shared_data: Path, tmp_path: Path) -> None:
    """A prompt of 1,500 tokens that another model computed: at most 0.05 of that one's time to the
    first token."""
    path = tiny_bundle(tmp_path / "t.edge", context=2048, layers=6, width=512, ff=1536)
    prompt = [4 + (7 * i) % 250 for i in range(1500)]
    spent = []
    for question in ([50, 60], [70, 80, 90]):
        with edgert.load(path, threads=1, prompt_cache=tmp_path / "cache") as model:
            answer(model, [9, 8, 7])
            start = time.process_time()
            stream = model.stream([*prompt, *question], max_tokens=4, **NO_END)
            next(stream)
            spent.append(time.process_time() - start)
            stream.finish()
    assert spent[1] <= 0.05 * spent[0]
