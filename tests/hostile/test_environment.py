"""H35: no numba, caches that cannot be written or belong to another CPU, no network, forks."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from edgert.kernels import isa, library

from ..conftest import ROOT
from ..tiny import tiny_bundle

WITHOUT_NUMBA = "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None\n"
COMPILED = {library.VARIABLE: "0"}  # no shipped kernels
# Any attempt to reach a network ends the process with this text on stderr.
OFFLINE = (
    "import sys\n"
    "def hook(event, args):\n"
    "    if event in ('socket.connect', 'socket.getaddrinfo'): raise SystemExit('NETWORK')\n"
    "sys.addaudithook(hook)\n"
)
GREEDY = "model.generate('hello', max_tokens=6, temperature=0).token_ids"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("environment") / "tiny.edge", quant="f32")


def fresh(
    code: str, *, env: dict[str, str] | None = None, timeout: float = 200
) -> subprocess.CompletedProcess[str]:
    """A new interpreter that runs `code`."""
    return subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True, text=True, cwd=ROOT, env=os.environ | (env or {}),
        timeout=timeout, check=False,
    )  # fmt: skip


def expected(bundle: Path) -> str:
    """What the NumPy session answers."""
    import edgert

    with edgert.load(bundle, device="reference") as model:
        return str(model.generate("hello", max_tokens=6, temperature=0).token_ids)


def test_h35_without_kernels_the_numpy_path_answers_with_one_notice(bundle: Path) -> None:
    code = (
        f"{WITHOUT_NUMBA}{OFFLINE}import edgert\n"
        f"for _ in range(2):\n"
        f"    with edgert.load({str(bundle)!r}) as model:\n"
        f"        print(model.session.device, {GREEDY})\n"
    )
    done = fresh(code, env=COMPILED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"reference {expected(bundle)}"] * 2
    assert done.stderr.count("\n") == 1
    assert "numba is not installed, using the NumPy path" in done.stderr


@pytest.mark.parametrize(
    "args", [["doctor", "--json"], ["bench", "BUNDLE", "-p", "4", "-n", "2", "-r", "1", "--json"]]
)
def test_h35_verbs_without_numba(bundle: Path, args: list[str]) -> None:
    argv = ["edgert", *(str(bundle) if arg == "BUNDLE" else arg for arg in args)]
    done = fresh(
        f"{WITHOUT_NUMBA}sys.argv = {argv!r}\nfrom edgert.cli import main\nmain()", env=COMPILED
    )
    assert done.returncode in (0, 1), done.stderr
    assert done.stdout.startswith("{")
    assert "Traceback" not in done.stderr


# An installation of Numba that fails in its own words, and a folder that is called so.
BROKEN = {
    "Numba needs NumPy 2.3 or less": "raise ImportError('Numba needs NumPy 2.3 or less')",
    "cannot load libllvmlite": "raise OSError('cannot load libllvmlite')",
    "No module named 'numba.core'": "",
}


@pytest.mark.parametrize("reason", BROKEN)
def test_h35_a_numba_that_cannot_be_imported(bundle: Path, tmp_path: Path, reason: str) -> None:
    """Is named with the reason, and NumPy answers."""
    (tmp_path / "numba").mkdir()
    (tmp_path / "numba" / "__init__.py").write_text(BROKEN[reason], encoding="utf-8")
    code = (
        f"import sys, edgert\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"with edgert.load({str(bundle)!r}) as model:\n"
        f"    print(model.session.device, {GREEDY})\n"
        f"from edgert.machine.doctor import examine\n"
        f"for problem in examine().problems:\n"
        f"    print(problem.message)\n"
    )
    done = fresh(code, env=COMPILED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"reference {expected(bundle)}\n")
    assert done.stderr.count("\n") == 1
    for said in (done.stdout, done.stderr):
        assert "numba cannot be imported" in said
        assert reason in said


def test_h35_the_variable_that_leaves_kernels_out_is_named(bundle: Path) -> None:
    code = (
        f"{WITHOUT_NUMBA}import edgert\n"
        f"edgert.load({str(bundle)!r}).close()\n"
        f"from edgert.machine.doctor import examine\n"
        f"for problem in examine().problems:\n"
        f"    print(problem.message, problem.hint)\n"
    )
    done = fresh(code, env=COMPILED)
    assert done.returncode == 0, done.stderr
    for said in (done.stdout, done.stderr):
        assert f"{library.VARIABLE}=0 asks for compiled kernels" in said
        assert f"unset {library.VARIABLE}" in said
        assert "came with" not in said


def test_h35_junk_in_that_variable_is_ignored_with_a_line(bundle: Path) -> None:
    code = f"import edgert\nfor _ in range(2):\n    edgert.load({str(bundle)!r}).close()\n"
    done = fresh(code, env={library.VARIABLE: "off"})
    assert done.returncode == 0, done.stderr
    assert done.stderr.count(f"{library.VARIABLE}='off' is ignored, expected 0 or 1") == 1


def test_h35_warming_without_numba_is_an_error(bundle: Path) -> None:
    code = f"{WITHOUT_NUMBA}sys.argv = ['edgert', 'doctor', '--warm']\n"
    done = fresh(f"{code}from edgert.cli import main\nmain()", env=COMPILED)
    assert done.returncode == 2, done.stderr
    assert "numba is not installed" in done.stderr


def test_h35_a_cache_that_cannot_be_written_costs_time_only(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")  # even root makes no folder under a file
    code = (
        f"{OFFLINE}import edgert\n"
        f"for _ in range(2):\n"
        f"    with edgert.load({str(bundle)!r}, threads=1) as model:\n"
        f"        print(model.session.device, {GREEDY})\n"
    )
    done = fresh(code, env={"EDGERT_CACHE": str(tmp_path / "file" / "cache"), **COMPILED})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"cpu {expected(bundle)}"] * 2
    assert done.stderr.count("cannot be written") == 1
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_h35_a_damaged_hash_cache_is_made_anew(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "verified.json").write_text('{"half', encoding="utf-8")
    code = f"import edgert; edgert.load({str(bundle)!r}, device='reference').close()"
    done = fresh(code, env={"EDGERT_CACHE": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")


def test_h35_kernels_of_another_cpu_are_not_used() -> None:
    """The folder of compiled kernels is named by instruction set and sources."""
    code = "from edgert.session import kernel_cache; print(kernel_cache().name)"
    names = {}
    for name in isa.supported():
        done = fresh(code, env={isa.VARIABLE: name, **COMPILED})
        assert done.returncode == 0, done.stderr
        names[name] = done.stdout.strip()
    assert len(set(names.values())) == len(names) >= 2
    for name, folder in names.items():
        assert name in folder


def test_h35_an_instruction_set_this_cpu_lacks_is_refused(bundle: Path) -> None:
    lacking = sorted(set(isa.NEEDS) - set(isa.supported()))
    assert lacking, "no CPU has both SSE and NEON"
    argv = ["edgert", "generate", str(bundle), "-p", "hi", "-n", "2"]
    for name in (lacking[0], "mmx"):
        code = f"import sys; sys.argv = {argv!r}\nfrom edgert.cli import main\nmain()"
        done = fresh(code, env={isa.VARIABLE: name, **COMPILED})
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert isa.VARIABLE in done.stderr
        assert "Traceback" not in done.stderr


# A user that no system file lists, who may read everything and write nothing of others.
NOBODY = (
    "setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "--bounding-set=-dac_override",
    "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search",
)  # fmt: skip
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0 or shutil.which("setpriv") is None,
    reason="only root with setpriv becomes another user",
)


def as_nobody(code: str, **env: str | None) -> subprocess.CompletedProcess[str]:
    """`fresh` as that user, with variables set or (None) unset."""
    kept = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env}
    return subprocess.run(
        [*NOBODY, sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True, text=True, cwd=ROOT, timeout=200, check=False,
        env={name: value for name, value in kept.items() if value is not None},
    )  # fmt: skip


@needs_root
def test_h35_a_user_without_a_home(bundle: Path) -> None:
    """HOME unset and the user unknown: nothing is kept, and one line says so."""
    code = (
        f"import edgert\n"
        f"from edgert.session import kernel_cache\n"
        f"for _ in range(2):\n"
        f"    print(kernel_cache())\n"
        f"with edgert.load({str(bundle)!r}, device='reference') as model:\n"
        f"    print({GREEDY})\n"
    )
    done = as_nobody(code, HOME=None, EDGERT_CACHE=None, XDG_CACHE_HOME=None, **COMPILED)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["None", "None", expected(bundle)]
    assert done.stderr.count("\n") == 1
    assert "EDGERT_CACHE" in done.stderr
    assert not (ROOT / "~").exists()


@needs_root
def test_h35_warmed_kernels_of_another_user(tmp_path: Path) -> None:
    """Made by root, used by somebody who cannot write there: no line, and no kernel compiled."""
    code = (
        "from edgert.session import kernel_cache\n"
        "from edgert.kernels.cpu import jit\n"
        "print(jit.compile_kernel('select', kernel_cache()).cache_hits)\n"
    )
    root = fresh(code, env={"EDGERT_CACHE": str(tmp_path), **COMPILED})
    assert (root.returncode, root.stdout) == (0, "0\n"), root.stderr
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == 0 and folder.parts[1:2] == ("tmp",):
            folder.chmod(0o755)
    before = sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*"))
    done = as_nobody(code, EDGERT_CACHE=str(tmp_path), HOME="/nonexistent", **COMPILED)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert sorted((p, p.stat().st_mtime_ns) for p in tmp_path.rglob("*")) == before


def test_the_cache_folder_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    from edgert.storage import cachedir

    def unknown(*args: object, **options: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("EDGERT_CACHE", raising=False)
    for found in (unknown, lambda *args, **options: Path("~/.cache/edgert")):
        monkeypatch.setattr(platformdirs, "user_cache_path", found)
        assert cachedir.cache_root() == cachedir.NOWHERE
        assert not cachedir.readable(cachedir.NOWHERE)
        assert not cachedir.writable(cachedir.NOWHERE)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_h35_a_fork_does_not_crash_or_hang(bundle: Path) -> None:
    """The child of a process with a thread team gets an error that says why, can load for itself,
    and leaves its parent unharmed."""
    code = (
        f"import os, edgert\n"
        f"model = edgert.load({str(bundle)!r}, threads=2)\n"
        f"before = {GREEDY}\n"
        f"child = os.fork()\n"
        f"if child == 0:\n"
        f"    try:\n"
        f"        {GREEDY}\n"
        f"    except edgert.RequestError as error:\n"
        f"        print(error.code, flush=True)\n"
        f"    with edgert.load({str(bundle)!r}, threads=2) as model:\n"
        f"        print({GREEDY} == before, flush=True)\n"
        f"    os._exit(0)\n"
        f"print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), {GREEDY} == before)\n"
        f"model.close()\n"
    )
    done = fresh(code, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["fork", "True", "0 True"], done.stderr


@needs_root
def test_h35_no_more_threads_to_be_had(bundle: Path) -> None:
    """The first thread that is missing is the tokenizer's: an error that says so."""
    code = (
        f"import resource, edgert\n"
        f"resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))\n"
        f"try:\n"
        f"    edgert.load({str(bundle)!r}, device='reference')\n"
        f"except edgert.ResourceError as error:\n"
        f"    print(error.code, error.message)\n"
    )
    done = as_nobody(code, OPENBLAS_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("threads-start a thread for the tokenizer could not be started")


def test_h35_threads_that_are_greenlets(bundle: Path, kernel_folder: Path) -> None:
    """As gevent patches `threading`: what is started runs on the thread that started it, in turn.
    A step that waits for such a thread waits for ever, so it takes none."""
    code = (
        f"import threading, types\n"
        f"class Greenlet(threading.Thread):\n"
        f"    def start(self):\n"
        f"        self._native_id = threading.get_native_id()\n"
        f"import edgert, edgert.session.team as team\n"
        f"patched = types.SimpleNamespace(**vars(threading))\n"
        f"patched.Thread = Greenlet\n"
        f"for module in (threading, patched):\n"
        f"    team.threading = module\n"
        f"    with edgert.load({str(bundle)!r}, threads=2) as model:\n"
        f"        print({GREEDY})\n"
    )
    done = fresh(code, env={"EDGERT_CACHE": str(kernel_folder)})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [expected(bundle)] * 2
    assert done.stderr.count("threads are greenlets here") == 1
