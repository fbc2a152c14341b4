"""Opens bundles in a process of its own, with limits, and tells what each one cost.

Run as `python -m tests.hostile.box GOOD BAD...`: opens GOOD first (so that imports and caches are
warm), then sets an address-space limit and an audit of opened files, and prints one JSON line for
each BAD bundle and each way of looking at it (open, verify). `examine` runs it and reads the lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SPACE = 512 << 20  # bytes of address space beyond what the warm process has
ROOT = Path(__file__).resolve().parents[2]


def examine(good: Path, bad: Iterable[Path], home: Path, timeout: float) -> list[dict[str, Any]]:
    """Lines of a box that looks at `bad`; fails when it dies, hangs or prints a traceback."""
    environment = os.environ | {"HOME": str(home), "EDGERT_CACHE": str(home / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.box", str(good), *map(str, bad)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"the box ended with {done.returncode}: {done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Everything below a folder: name -> mode, size, hash of content or link target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else ""
        if path.is_file() and not path.is_symlink():
            content = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_size, content)
    return found


def peak_rss() -> int:
    """Largest resident size since the last `forget_peak`, bytes (Linux)."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))


def forget_peak() -> int:
    """Start the peak anew; the size now."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    return peak_rss()


def limit_memory() -> None:
    """No more than SPACE bytes of address space from here on."""
    import resource

    with open("/proc/self/statm", encoding="ascii") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPACE, now + SPACE))


def look(action: Any, path: str, opened: list[str]) -> dict[str, Any]:
    """One bundle, one way: what came, what it cost, and which files it opened (see the audit)."""
    from edgert.errors import EdgertError

    before, start = forget_peak(), time.perf_counter()
    opened.clear()
    line: dict[str, Any] = {"path": path, "action": action.__name__, "code": None}
    try:
        line["code"] = action(path)
    except EdgertError as error:
        line |= {"code": error.code, "class": type(error).__name__, "exit": error.exit_code}
    except BaseException as error:
        line |= {"code": f"{type(error).__name__}: {error}"[:300], "class": "foreign"}
    line |= {"seconds": time.perf_counter() - start, "opened": list(opened)}
    return line | {"growth": peak_rss() - before}


def main() -> None:
    from edgert.bundle import Bundle
    from edgert.evaluation.verify import verify_bundle

    def open_(path: str) -> None:
        Bundle.open(path).close()

    def verify(path: str) -> str | None:
        problems = verify_bundle(path, values=True).problems()
        return problems[0].code if problems else None

    good, *bad = sys.argv[1:]
    opened: list[str] = []
    for action in (open_, verify):
        action(good)
    limit_memory()
    sys.addaudithook(
        lambda event, args: (
            opened.append(os.fspath(args[0]))
            if event == "open" and isinstance(args[0], str | os.PathLike)
            else None
        )
    )
    for path in bad:
        for action in (open_, verify):
            print(json.dumps(look(action, path, opened)), flush=True)


if __name__ == "__main__":
    main()
