"""Beginnings of texts that were computed once, for everybody who begins the same way.

A radix tree over token ids, a node for each page of 64 tokens: the path from the root to a node is
the text, and the node holds the page. States share pages with the tree by reference counts and copy
the one they write into. Keys and values can be cut at any token; recurrent states only go on from
where a copy of them was kept, which a node then holds as well. Texts of one adapter, and with one
set of rotary factors, have a root of their own: others' keys and values are never theirs.

Only committed tokens come in. What nobody used for longest goes first, from the ends of texts, when
the tree takes more than its budget or pages are needed elsewhere. Where there is a disk
(`prefix_disk`), it is asked for what the tree does not know, and gets what is new in it.
"""

from __future__ import annotations

import heapq
import threading
from collections.abc import Sequence
from typing import Protocol

from .pages import PAGE_TOKENS, PagePool, pages_for
from .sequence import CpuState
from .slots import SlotContent, SlotPool, content_bytes

WORTH = 16  # tokens that must be known besides what a state holds for it to begin anew
SNAPSHOTS = 4  # of recurrent states in one page's node; the latest stay

Kind = tuple[str, bool]  # of a text: its adapter, and whether it has the long rotary factors


class Node:
    """Up to 64 tokens from `start` on, behind the parent's text. page: -1 where the graph has no
    paged state. snapshots: recurrent content by the tokens of this node that it has seen. gone:
    whether it was dropped. key: what the disk calls its text, "" for not known yet. filed: tokens
    of it whose page the disk has."""

    def __init__(self, tokens: tuple[int, ...], page: int, parent: Node | None) -> None:
        self.tokens, self.page, self.parent = tokens, page, parent
        first = parent is None or parent.parent is None
        self.start: int = 0 if parent is None or first else parent.start + PAGE_TOKENS
        self.children: dict[int, list[Node]] = {}  # by first token
        self.snapshots: dict[int, SlotContent] = {}
        self.used = 0
        self.gone, self.key, self.filed = False, "", 0

    def __lt__(self, other: Node) -> bool:
        return self.used < other.used


class Disk(Protocol):
    """What a tree needs of `prefix_disk.PrefixDisk`; its lock is held where it is called."""

    def fetch(self, tokens: Sequence[int], kind: Kind, known: int) -> None:
        """Bring what is known on the disk beyond the first `known` tokens into the tree."""

    def root(self, kind: Kind) -> str:
        """The key of the empty text."""

    def note(self, node: Node, seen: int = 0) -> None:
        """A node, or its snapshot of so many tokens, is new or was used."""

    def begin(self) -> None:
        """Write what was noted, in the background."""

    def close(self) -> None:
        """Write what was noted, and wait for it."""


class PrefixCache:
    """The tree of one session. budget: bytes that it may take; what states share with it counts.

    Any thread may call; states that are given must not be in a step.
    """

    def __init__(self, pool: PagePool, slots: SlotPool, budget: int) -> None:
        self.pool, self.slots, self.budget = pool, slots, budget
        self.lock = threading.RLock()
        self.disk: Disk | None = None
        self._roots: dict[Kind, Node] = {}
        self._clock = 0
        self._pages = self._bytes = self._nodes = 0

    @property
    def nbytes(self) -> int:
        return self._pages * self.pool.bytes_per_page + self._bytes

    @property
    def pages(self) -> int:
        """Pages that the tree holds."""
        return self._pages

    # --- looking up -------------------------------------------------------------------------

    def known(self, tokens: Sequence[int], *, long_rope: bool = False, adapter: str = "") -> int:
        """How many of the tokens a state with this adapter could begin with."""
        with self.lock:
            return self.resumable(*self.match(tokens, (adapter, long_rope)))[0]

    def root(self, kind: Kind) -> Node:
        """The empty text of a kind."""
        if kind not in self._roots:
            self._roots[kind] = Node((), -1, None)
            self._roots[kind].key = "" if self.disk is None else self.disk.root(kind)
        return self._roots[kind]

    def fetch(
        self, tokens: Sequence[int], known: int, *, long_rope: bool = False, adapter: str = ""
    ) -> None:
        """Have the tree know what the disk does, where that is more than the first `known`."""
        if self.disk is not None and len(tokens) >= known + WORTH:
            with self.lock:
                self.disk.fetch(tokens, (adapter, long_rope), known)

    def resume(self, state: CpuState, tokens: Sequence[int]) -> int:
        """Let an empty state begin with what is known of the tokens: how many that is. Raises
        ResourceError where no slot is free; then nothing has changed."""
        with self.lock:
            path, length = self.match(tokens, (state.adapter, state.long_rope))
            length, content = self.resumable(path, length)
            if length:
                count = self.pool.count(length)
                state.adopt([node.page for node in path[:count]], tokens[:length], content)
                self.touch(path)
                seen = 0 if content is None else (length - 1) % PAGE_TOKENS + 1
                self._note(path[pages_for(length) - 1], seen)
            return length

    def match(self, tokens: Sequence[int], kind: Kind) -> tuple[list[Node], int]:
        """The nodes along the longest known beginning of the tokens, and its length."""
        node, at, path = self.root(kind), 0, list[Node]()
        while at < len(tokens):
            best, same = None, 0
            for child in node.children.get(tokens[at], ()):
                agreed = _agreed(child.tokens, tokens, at)
                if agreed > same:
                    best, same = child, agreed
            if best is None:
                break
            path.append(best)
            at += same
            if same < PAGE_TOKENS:
                break
            node = best
        return path, at

    def resumable(self, path: list[Node], length: int) -> tuple[int, SlotContent | None]:
        """The length that a state can go on from, and its recurrent content there."""
        if not self.slots:
            inside = length % PAGE_TOKENS
            return length - (0 if not path or self._cut(path[-1], inside) else inside), None
        for index in range(len(path) - 1, -1, -1):
            start, node = index * PAGE_TOKENS, path[index]
            kept = [n for n in node.snapshots if start + n <= length and self._cut(node, n)]
            if kept:
                return start + max(kept), path[index].snapshots[max(kept)]
        return 0, None

    def _cut(self, node: Node, tokens: int) -> bool:
        """Whether a state can go on from so many of a node's tokens: not inside a page of codes."""
        return not self.pool.coded or not tokens % PAGE_TOKENS or len(node.tokens) < PAGE_TOKENS

    def touch(self, path: Sequence[Node]) -> None:
        """Parents are never older than what stands behind them."""
        self._clock += 1
        for node in path:
            node.used = self._clock

    # --- keeping ------------------------------------------------------------------------------

    def keep(self, state: CpuState, tokens: Sequence[int], *, whole: bool = False) -> None:
        """Remember what a state holds: `tokens`, all that it has committed. whole: with the page
        that is not full, for states that will not write into it soon. Pages that are known already
        the state takes over and gives its own back: the same text is held once."""
        length, ended, whole = state.length, whole, whole or bool(self.slots)
        if len(tokens) != length:
            raise ValueError(f"{len(tokens)} tokens of a state that holds {length}")
        ends = length if whole else length - length % PAGE_TOKENS
        with self.lock:
            node, path = self.root((state.adapter, state.long_rope)), list[Node]()
            for start in range(0, ends, PAGE_TOKENS):
                block = tuple(tokens[start : min(ends, start + PAGE_TOKENS)])
                found = self.child(node, block)
                if found is None:
                    page = state.pages[start // PAGE_TOKENS] if self.pool.count(1) else -1
                    self.pool.share([page] if page >= 0 else [])
                    found = self.grow(node, block, page)
                    self._note(found)
                elif len(block) == PAGE_TOKENS and found.page >= 0:
                    state.swap(start // PAGE_TOKENS, found.page)
                path.append(found)
                node = found
            self.touch(path)
            if self.slots and path:
                self._snapshot(path[-1], state, length - (len(path) - 1) * PAGE_TOKENS)
            self.limit()
            if self.disk is not None and ended:
                self.disk.begin()

    def child(self, node: Node, block: tuple[int, ...]) -> Node | None:
        """The child that holds all of a block, which it may go on from."""
        for child in node.children.get(block[0], ()):
            if child.tokens[: len(block)] == block:
                return child
        return None

    def grow(self, node: Node, block: tuple[int, ...], page: int) -> Node:
        """A new child, or one that was shorter made longer. page: the tree's from now on."""
        for child in node.children.get(block[0], ()):
            if block[: len(child.tokens)] == child.tokens:
                if child.page >= 0:
                    self.pool.give([child.page])
                child.tokens, child.page = block, page
                return child
        child = Node(block, page, node)
        node.children.setdefault(block[0], []).append(child)
        self._nodes += 1
        self._pages += page >= 0
        return child

    def _snapshot(self, node: Node, state: CpuState, seen: int) -> None:
        if seen in node.snapshots or not 0 < seen <= len(node.tokens):
            return
        state.up_to_date()
        content = self.slots.kept(state.slot, state.length)
        if content_bytes(content) <= self.budget:
            self.hold(node, content, seen)
            self._note(node, seen)

    def _note(self, node: Node, seen: int = 0) -> None:
        if self.disk is not None:
            self.disk.note(node, seen)

    def hold(self, node: Node, content: SlotContent, seen: int) -> None:
        """Let a node have recurrent content of the first `seen` of its tokens."""
        if seen in node.snapshots:
            return
        node.snapshots[seen] = content
        self._bytes += content_bytes(content)
        while len(node.snapshots) > SNAPSHOTS:
            self._bytes -= content_bytes(node.snapshots.pop(min(node.snapshots)))

    def close(self) -> None:
        """What the disk shall keep is kept when this returns; the tree itself goes on."""
        if self.disk is not None:
            self.disk.close()

    # --- giving back ----------------------------------------------------------------------------

    def free(self, pages: int) -> int:
        """Give back at least so many pages that nobody else holds, if there are as many: how many
        it were."""
        with self.lock:
            return self._drop(pages, unshared=True)

    def clear(self) -> None:
        """Forget everything."""
        with self.lock:
            self._drop(self._nodes, unshared=False)

    def limit(self) -> None:
        """Drop what is over the budget."""
        while self.nbytes > self.budget and self._nodes:
            size = max(1, self.pool.bytes_per_page)
            self._drop(max(1, (self.nbytes - self.budget) // size), unshared=False)

    def _drop(self, count: int, *, unshared: bool) -> int:
        """Drop ends of texts, least recently used first: how many. unshared: only those whose page
        would be free then."""
        ends = [node for node in self._all() if not node.children]
        heapq.heapify(ends)
        dropped = 0
        while ends and dropped < count:
            node = heapq.heappop(ends)
            if unshared and (node.page < 0 or self.pool.shared(node.page)):
                continue
            self._remove(node)
            dropped += 1
            parent = node.parent
            if parent is not None and parent.parent is not None and not parent.children:
                heapq.heappush(ends, parent)
        return dropped

    def _all(self) -> list[Node]:
        found = [child for root in self._roots.values() for child in _children(root)]
        for node in found:  # grows meanwhile
            found += _children(node)
        return found

    def _remove(self, node: Node) -> None:
        parent = node.parent
        if parent is None:
            return
        siblings = parent.children[node.tokens[0]]
        siblings.remove(node)
        if not siblings:
            del parent.children[node.tokens[0]]
        self._nodes -= 1
        node.gone = True
        self._bytes -= sum(content_bytes(content) for content in node.snapshots.values())
        if node.page >= 0:
            self._pages -= 1
            self.pool.give([node.page])


def _children(node: Node) -> list[Node]:
    return [child for children in node.children.values() for child in children]


def _agreed(block: tuple[int, ...], tokens: Sequence[int], at: int) -> int:
    """How many of a block's tokens stand at place `at`."""
    count = min(len(block), len(tokens) - at)
    if block[:count] == tuple(tokens[at : at + count]):
        return count
    return next(i for i in range(count) if block[i] != tokens[at + i])
