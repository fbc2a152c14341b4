"""Between the tree of known beginnings and its files: what is brought in, and what is written.

A text is looked for from where the tree ends. Keys and values: page by page, then the page that
agrees with most of the rest. Recurrent states: the furthest one, and the pages before it. Writing
is done by a thread of its own that lives while there is something to write; it begins when an
answer ends, and copies a page's content under the tree's lock.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import ResourceError
from .halves import filed, unfiled
from .pages import PAGE_TOKENS, Bytes, PagePool
from .prefix_files import Piece, PrefixFiles, key_of, root_of
from .prefixes import WORTH, Kind, Node, PrefixCache
from .slots import SlotContent


class PrefixDisk:
    """What a tree asks and tells (`prefixes.Disk`)."""

    def __init__(self, cache: PrefixCache, files: PrefixFiles) -> None:
        self.cache, self.files = cache, files
        self._noted: list[tuple[Node, int]] = []
        self._writing = threading.Condition()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()
        _open.add(self)

    def root(self, kind: Kind) -> str:
        return root_of(self.files.owner, kind[0], long_rope=kind[1])

    # --- bringing in ----------------------------------------------------------------------------

    def fetch(self, tokens: Sequence[int], kind: Kind, known: int) -> None:
        path, length = self.cache.match(tokens, kind)
        known = max(known, self.cache.resumable(path, length)[0])
        if known + WORTH > len(tokens):
            return
        whole = path[: length // PAGE_TOKENS]
        node = whole[-1] if whole else self.cache.root(kind)
        if self.cache.slots:
            brought = self._further(tokens, kind, whole, known)
        else:
            brought = self._bring(node, self._pages(tokens, node, len(whole), known), whole)
        if brought:
            self.cache.touch(_chain(brought[-1]))
        self.cache.limit()

    def _pages(self, tokens: Sequence[int], node: Node, depth: int, known: int) -> list[Piece]:
        """The pages that lead on from the first `depth`, if they lead further than is known."""
        found, parent, start = list[Piece](), self._key(node), depth * PAGE_TOKENS
        while start + PAGE_TOKENS <= len(tokens):
            piece = self._page_piece(parent, tokens, start)
            if not self.files.has(piece):
                break
            found.append(piece)
            parent, start = piece.key, start + PAGE_TOKENS
        below = PAGE_TOKENS if self.cache.pool.coded else PAGE_TOKENS + 1
        last, same = self.files.nearest(parent, tokens[start : start + PAGE_TOKENS], below=below)
        if last is not None and last.start == start:
            found.append(last)
            start += same
        return found if start >= known + WORTH else []

    @staticmethod
    def _page_piece(parent: str, tokens: Sequence[int], start: int) -> Piece:
        key = key_of(parent, tokens[start : start + PAGE_TOKENS])
        return Piece(parent, key, start, PAGE_TOKENS)

    def _further(
        self, tokens: Sequence[int], kind: Kind, whole: Sequence[Node], known: int
    ) -> list[Node]:
        """Bring the recurrent states that have seen most of the tokens, beyond the known ones, and
        the pages before them: the new nodes; none where there are no such states."""
        keys = [self.root(kind)]
        for start in range(0, len(tokens) - PAGE_TOKENS + 1, PAGE_TOKENS):
            keys.append(self._page_piece(keys[-1], tokens, start).key)
        for depth in range(len(keys) - 1, -1, -1):
            start = depth * PAGE_TOKENS
            if start + PAGE_TOKENS < known + WORTH:
                break
            for piece in sorted(self.files.behind(keys[depth], state=True), key=_most_first):
                reach = start + piece.length
                fits = piece.start == start and known + WORTH <= reach <= len(tokens)
                if not fits or key_of(keys[depth], tokens[start:reach]) != piece.key:
                    continue
                found = self._led_to(piece, tokens, kind, whole, keys)
                if found:
                    return found
        return []

    def _led_to(
        self, piece: Piece, tokens: Sequence[int], kind: Kind, whole: Sequence[Node],
        keys: Sequence[str],
    ) -> list[Node]:  # fmt: skip
        """The nodes up to a state's; none where one is missing."""
        held = whole[: piece.start // PAGE_TOKENS]
        node = held[-1] if held else self.cache.root(kind)
        starts = range(len(held) * PAGE_TOKENS, piece.start, PAGE_TOKENS)
        pieces = [self._page_piece(keys[start // PAGE_TOKENS], tokens, start) for start in starts]
        if not self.cache.pool.count(1):
            for before in pieces:
                node = self._put(node, tuple(tokens[before.start :][:PAGE_TOKENS]), -1)
            pieces = []
        if not all(self.files.has(before) for before in pieces):
            return []
        pieces.append(piece)
        if self._room(len(pieces), held) < len(pieces):
            return []
        brought = self._bring(node, pieces, held)
        return brought if len(brought) == len(pieces) else []

    def _bring(self, node: Node, pieces: Sequence[Piece], held: Sequence[Node]) -> list[Node]:
        """Read pieces behind a node, as far as they fit and there is room: their nodes."""
        brought = list[Node]()
        for index, piece in enumerate(pieces[: self._room(len(pieces), held)]):
            content = self.files.load(piece)
            if content is not None and piece.state:
                content["state"] = unfiled(content.get("state"))
            page = None if content is None else self._page(piece, content)
            if content is None or page is None:
                if not self.files.has(piece):  # what is behind it may be damaged as well
                    self.files.distrust(pieces[index:])
                break
            node = self._put(node, tuple(content["tokens"]), page)
            if piece.state:
                state = self.cache.slots.rounded(_copied(content["state"]))
                self.cache.hold(node, state, piece.length)
            elif piece.length == PAGE_TOKENS:
                node.key = piece.key
            else:
                node.filed = max(node.filed, piece.length)
            brought.append(node)
        return brought

    def _room(self, count: int, held: Sequence[Node]) -> int:
        """How many pages there are room for, of `count`. held: nodes that must not go for it."""
        pool = self.cache.pool
        if not pool.count(1):
            return count
        count = min(count, self.cache.budget // max(1, pool.bytes_per_page) - len(held))
        short = count - pool.indices.free
        if short > 0:
            pages = [node.page for node in held]
            pool.share(pages)
            self.cache.free(short)
            pool.give(pages)
        return max(0, min(count, pool.indices.free))

    def _put(self, node: Node, block: tuple[int, ...], page: int) -> Node:
        found = self.cache.child(node, block)
        if found is None:
            return self.cache.grow(node, block, page)
        if page >= 0:
            self.cache.pool.give([page])
        return found

    def _page(self, piece: Piece, content: Mapping[str, Any]) -> int | None:
        """A page with a file's content, -1 where the graph has none; None where there is no room,
        or the content is not this model's."""
        pool = self.cache.pool
        fault = self._fault(piece, content)
        if fault:
            self.files.refuse(piece, fault)
            return None
        if not pool.count(1):
            return -1
        try:
            (page,) = pool.take(1)
        except ResourceError:
            return None
        _put_apart(content["page"], _pools(pool), page)
        if pool.coded and piece.length == PAGE_TOKENS:
            pool.seal(page)
        elif pool.coded:
            _put_apart(content["fresh"], list(pool.fresh_pools.values()), int(pool.fresh[page]))
        return page

    def _fault(self, piece: Piece, content: Mapping[str, Any]) -> str:
        """What of a file's content is not as this model's pools are, "" for nothing."""
        pool = self.cache.pool
        sizes = {"page": pool.bytes_per_page} if pool.count(1) else {}
        if pool.coded and piece.length < PAGE_TOKENS:
            sizes["fresh"] = pool.bytes_per_fresh
        for name, size in sizes.items():
            if not _is_bytes(content.get(name), size):
                return f"its {name} is not {size} bytes"
        if piece.state:
            return self.cache.slots.fault(content.get("state"), piece.start + piece.length)
        return ""

    # --- writing --------------------------------------------------------------------------------

    def note(self, node: Node, seen: int = 0) -> None:
        self._noted.append((node, seen))

    def begin(self) -> None:
        with self._writing:
            if self._thread is None and self._noted:
                self._thread = threading.Thread(
                    target=self._write_all, name="edgert-prompt-cache", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        if os.getpid() != self._process:  # a forked child has no thread, and nothing to write
            return
        with self._writing:
            self._writing.wait_for(lambda: self._thread is None)
        self._write_all()

    def _write_all(self) -> None:
        try:
            while self._noted:
                with self.cache.lock:
                    noted, self._noted = self._noted, []
                    wanted = _with_parents(noted)
                used = [self._write(node, seen) for node, seen in wanted]
                self.files.touch(piece for piece in used if piece is not None)
                self.files.limit()
        finally:
            with self._writing:
                self._thread = None
                self._writing.notify_all()

    def _write(self, node: Node, seen: int) -> Piece | None:
        """Write a node, or its states, if the disk does not have it: its piece, None for none."""
        with self.cache.lock:
            parent, tokens = node.parent, node.tokens[: seen or None]
            if node.gone or parent is None or not (seen or self._alone(node)):
                return None
            key, start = self._key(parent), node.start
            piece = Piece(key, key_of(key, tokens), start, len(tokens), bool(seen))
            old, node.filed = node.filed, node.filed if seen else len(tokens)
            there = self.files.has(piece)
            content = None if there else self._content(node, len(tokens), seen)
        if content is not None:
            there = self.files.store(piece, content, tokens)
        if there and not seen and 0 < old < len(tokens):  # what it was when it was shorter
            self.files.remove(Piece(key, key_of(key, tokens[:old]), start, old))
        return piece if there else None

    def _alone(self, node: Node) -> bool:
        """Whether a node's page is worth a file without recurrent states."""
        if not self.cache.pool.count(1):
            return False
        return len(node.tokens) == PAGE_TOKENS or not self.cache.slots

    def _content(self, node: Node, count: int, seen: int) -> dict[str, Any] | None:
        """A copy of what a file holds of a node's first tokens; None where codes cannot be cut."""
        pool, content = self.cache.pool, dict[str, Any]()
        if node.page >= 0:
            content["page"] = np.concatenate([array[node.page] for array in _pools(pool)])
        if pool.coded and count < PAGE_TOKENS:
            at = int(pool.fresh[node.page])
            if at < 0:
                return None
            content["fresh"] = np.concatenate([a[at] for a in pool.fresh_pools.values()])
        if seen and seen not in node.snapshots:
            return None
        return content | {"state": filed(node.snapshots[seen])} if seen else content

    def _key(self, node: Node) -> str:
        """The key of a text that ends with a full page; ancestors know theirs afterwards."""
        unknown, at = list[Node](), node
        while not at.key and at.parent is not None:
            unknown.append(at)
            at = at.parent
        key = at.key
        for each in reversed(unknown):
            key = each.key = key_of(key, each.tokens)
        return key


def _chain(node: Node) -> list[Node]:
    """The nodes that lead to one, the first page's first; without the root."""
    found = list[Node]()
    while node.parent is not None:
        found.append(node)
        node = node.parent
    return found[::-1]


def _with_parents(noted: Sequence[tuple[Node, int]]) -> dict[tuple[Node, int], None]:
    """What was noted, each once, and the nodes before it."""
    found: dict[tuple[Node, int], None] = {}
    for node, seen in noted:
        found[node, seen] = None
        above = node.parent
        while above is not None and above.parent is not None and (above, 0) not in found:
            found[above, 0] = None
            above = above.parent
    return found


def _most_first(piece: Piece) -> int:
    return -piece.length


def _pools(pool: PagePool) -> list[Bytes]:
    """The pools whose rows are a page, in the order in which a file has them."""
    return [array for pools in pool.parts.values() for array in pools.values()]


def _is_bytes(held: Any, size: int) -> bool:
    return isinstance(held, np.ndarray) and held.dtype == np.uint8 and held.shape == (size,)


def _put_apart(held: Bytes, pools: Sequence[Bytes], index: int) -> None:
    """Bytes that stand end to end become rows `index` of pools."""
    start = 0
    for array in pools:
        stop = start + array.shape[1]
        array[index] = held[start:stop]
        start = stop


def _copied(content: Mapping[str, Mapping[str, Any]]) -> SlotContent:
    """Recurrent content of a file whose other bytes need not stay."""
    return {
        name: {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in parts.items()}
        for name, parts in content.items()
    }


_open: weakref.WeakSet[PrefixDisk] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for disk in list(_open):
        disk.close()
