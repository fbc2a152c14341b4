"""Known beginnings of texts as files of a folder, which later processes find again.

    DIR/<owner>/<parent>/<key>-<start>-<count>.page     keys and values of up to 64 tokens
    DIR/<owner>/<parent>/<key>-<start>-<count>.state    recurrent states behind them, and their page

The owner is a hash of everything that the content depends on: weights, graph, precision of keys and
values, the code that computed them. A key is a hash of its parent's key and of the tokens, a root's
of owner, adapter and rotary factors: the text itself says which files hold it, and there is no
index that could be wrong. Files are `storage.tree_file`, each with its name and its tokens, and are
checked against all of that before they are used; one that does not fit is passed over, and
replaced when its text is computed again.

What was not used for longest is removed when all models' files take more than the budget, ends of
texts first. Files that are called otherwise are nobody's here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ResourceError
from ..notices import logger, notice
from ..storage import tree_file
from ..storage.aside import MARK, remove_leftovers

FORMAT = "edgert-beginning-1"
KEY_DIGITS = 32
SIBLINGS = 32  # files of one place whose tokens are looked at, the newest
KEPT = 0.875  # of the budget, when it was passed
OTHERS_MAY_WRITE = stat.S_IWOTH
_FOLDER = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"([0-9a-f]{32})-([0-9]{1,9})-([0-9]{1,2})\.(page|state)")


class Piece(NamedTuple):
    """One file: `length` tokens from `start` on behind the text of `parent`."""

    parent: str
    key: str
    start: int
    length: int
    state: bool = False

    @property
    def name(self) -> str:
        """Its path inside the owner's folder."""
        kind = "state" if self.state else "page"
        return f"{self.parent}/{self.key}-{self.start}-{self.length}.{kind}"


def key_of(parent: str, tokens: Sequence[int]) -> str:
    """The key of a text that goes on with `tokens` behind its parent's."""
    given = np.asarray(tokens, "<i4").tobytes()
    return hashlib.sha256(bytes.fromhex(parent) + given).hexdigest()[:KEY_DIGITS]


def root_of(owner: str, adapter: str, *, long_rope: bool) -> str:
    """The key of the empty text."""
    said = f"{owner} {adapter} {long_rope}"
    return hashlib.sha256(said.encode()).hexdigest()[:KEY_DIGITS]


class PrefixFiles:
    """The files of one model.

    root: the folder of all models, made if need be. owner: hex. budget: bytes of all models' files.
    most: bytes that one of this model's may have. Raises ResourceError for a folder that cannot be
    made or read, and for one in which others may write.
    """

    def __init__(self, root: Path, owner: str, budget: int, most: int) -> None:
        self.root, self.owner, self.budget, self.most = root, owner, budget, most
        self.folder = root / owner[:KEY_DIGITS]
        self._unfit: set[str] = set()
        self._said = self._full = False
        self._bytes: int | None = None  # of all models' files, not counted yet
        try:
            for folder in (root, self.folder):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = [(folder, os.stat(folder)) for folder in (root, self.folder)]
        except OSError as error:
            raise ResourceError(
                f"{root} cannot be used for the prompt cache: {error.strerror or error}, expected "
                "a folder that can be written",
                code="prompt-cache",
                hint="name another folder with --prompt-cache (prompt_cache)",
                path=root,
            ) from None
        for folder, stat_ in found:
            self._check_private(folder, stat_)

    @staticmethod
    def _check_private(folder: Path, found: os.stat_result) -> None:
        """Who writes here, or renames what is here, decides what answers are computed from."""
        if not hasattr(os, "geteuid"):
            return
        me = os.geteuid()
        others = bool(found.st_mode & OTHERS_MAY_WRITE)
        if others or (me != 0 and found.st_uid not in (0, me)):
            what = "can be written by everybody" if others else f"belongs to user {found.st_uid}"
            raise ResourceError(
                f"{folder} {what}, expected a folder of user {me} alone",
                code="prompt-cache",
                hint="name another folder with --prompt-cache (prompt_cache), or change its owner "
                "and permissions",
                path=folder,
            )

    # --- looking up -----------------------------------------------------------------------------

    def has(self, piece: Piece) -> bool:
        """Whether there is such a file, which may still turn out to be unfit."""
        return piece.name not in self._unfit and os.path.isfile(self.folder / piece.name)

    def behind(self, parent: str, *, state: bool) -> list[Piece]:
        """What goes on behind a text, the newest first."""
        found: list[tuple[int, Piece]] = []
        with contextlib.suppress(OSError), os.scandir(self.folder / parent) as entries:
            for entry in entries:
                piece = _piece(parent, entry.name)
                if piece is None or piece.state != state or piece.name in self._unfit:
                    continue
                found.append((entry.stat(follow_symlinks=False).st_mtime_ns, piece))
        return [piece for _, piece in sorted(found, reverse=True)]

    def nearest(
        self, parent: str, tokens: Sequence[int], *, below: int
    ) -> tuple[Piece | None, int]:
        """The page of fewer than `below` tokens behind a text that agrees with the most of those
        that follow, and with how many."""
        best, most = None, 0
        near = [piece for piece in self.behind(parent, state=False) if piece.length < below]
        for piece in near[:SIBLINGS] if tokens else ():
            held = self._tokens(piece)
            pairs = zip(held, tokens, strict=False)
            all_ = min(len(held), len(tokens))
            same = next((i for i, (a, b) in enumerate(pairs) if a != b), all_)
            if same > most:
                best, most = piece, same
        return best, most

    def _tokens(self, piece: Piece) -> tuple[int, ...]:
        """A piece's tokens as its file says; () where it cannot be read."""
        try:
            tree = tree_file.peek(self.folder / piece.name, self._metadata, most=self.most)
        except tree_file.TreeError as error:
            self.refuse(piece, str(error))
            return ()
        held = tree.get("tokens") if isinstance(tree, dict) else None
        if not _are_tokens(held, piece):
            self.refuse(piece, "its tokens are not those of its name")
            return ()
        return tuple(map(int, held or ()))

    def load(self, piece: Piece) -> dict[str, Any] | None:
        """What `store` got; None where that is not what there is, which is said."""
        try:
            content = tree_file.read(self.folder / piece.name, self._metadata, most=self.most)
        except tree_file.TreeError as error:
            self.refuse(piece, str(error))
            return None
        if content.get("name") != piece.name or not _are_tokens(content.get("tokens"), piece):
            self.refuse(piece, "it was made for another name")
            return None
        return content

    @property
    def _metadata(self) -> dict[str, str]:
        return {"format": FORMAT, "owner": self.owner}

    def distrust(self, pieces: Iterable[Piece]) -> None:
        """Have files written anew that nobody looked into."""
        self._unfit.update(piece.name for piece in pieces)

    def refuse(self, piece: Piece, why: str) -> None:
        """A file does not fit: say so, and have it written anew."""
        self._unfit.add(piece.name)
        message = f"{self.folder / piece.name}: passed over, its text is computed again: {why}"
        if self._said:
            logger.info("%s", message)
        else:
            self._said = True
            notice(message)

    # --- keeping --------------------------------------------------------------------------------

    def store(self, piece: Piece, content: Mapping[str, Any], tokens: Sequence[int]) -> bool:
        """Write a file aside, and give it its name; whether that was done. content: what `load`
        shall give, beside its name and tokens. Where it fails nothing more is written, which is
        said."""
        if self._full:
            return False
        path = self.folder / piece.name
        whole = {**content, "name": piece.name, "tokens": [int(token) for token in tokens]}
        try:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            size = tree_file.write(path, whole, self._metadata)
        except OSError as error:
            self._full = True
            notice(f"{self.root}: the prompt cache is not written any more: {error}")
            return False
        self._unfit.discard(piece.name)
        if self._bytes is not None:
            self._bytes += size
        return True

    def remove(self, piece: Piece) -> None:
        """A piece that another one replaces."""
        with contextlib.suppress(OSError):
            os.unlink(self.folder / piece.name)

    def touch(self, pieces: Iterable[Piece]) -> None:
        """They were used: all at the same time, so that the ends of texts go first."""
        now = time.time_ns()
        follow = os.utime not in os.supports_follow_symlinks
        for piece in pieces:
            with contextlib.suppress(OSError):
                os.utime(self.folder / piece.name, ns=(now, now), follow_symlinks=follow)

    def limit(self) -> None:
        """Remove what was not used for longest, of any model, until the budget is kept."""
        if self._bytes is not None and self._bytes <= self.budget:
            return
        found = sorted(_all(self.root))
        self._bytes = sum(entry.size for entry in found)
        if self._bytes <= self.budget:
            return
        for entry in found:
            if self._bytes <= self.budget * KEPT:
                break
            with contextlib.suppress(OSError):  # somebody else's turn came first
                os.unlink(entry.path)
            with contextlib.suppress(OSError):  # it holds more
                os.rmdir(os.path.dirname(entry.path))
            self._bytes -= entry.size


class _Entry(NamedTuple):
    """A file of any model; sorted as they are removed: the oldest, of these the ends of texts."""

    used: int
    before: int
    path: str
    size: int


def _all(root: Path) -> Iterator[_Entry]:
    """Every piece of every model. What killed writers left goes."""
    for folder in _folders(root):
        for inner in _folders(Path(folder)):
            with contextlib.suppress(OSError), os.scandir(inner) as entries:
                listed = list(entries)
                if any(MARK in entry.name for entry in listed):
                    remove_leftovers(Path(inner))
                for entry in listed:
                    piece = _piece("", entry.name)
                    if piece is None:
                        continue
                    found = entry.stat(follow_symlinks=False)
                    yield _Entry(found.st_mtime_ns, -piece.start, entry.path, found.st_size)


def _folders(path: Path) -> list[str]:
    """Folders that are called like ours."""
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return [
            entry.path
            for entry in entries
            if _FOLDER.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]
    return []


def _piece(parent: str, name: str) -> Piece | None:
    """The piece that a file is called like."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    key, start, count, kind = found.groups()
    return Piece(parent, key, int(start), int(count), kind == "state")


def _are_tokens(held: Any, piece: Piece) -> bool:
    """Whether a list from a file is what the piece's key was made of."""
    if not isinstance(held, list) or len(held) != piece.length:
        return False
    if not all(type(token) is int and 0 <= token < 1 << 31 for token in held):
        return False
    return key_of(piece.parent, held) == piece.key
