"""A radix tree over token ids: which entries begin with the same tokens, found in the time it takes to compare once."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from server.engine.runner import Tokens

_NO_TOKENS: Tokens = np.empty(0, dtype=np.int32)


class Level(NamedTuple):
    """Entries that begin with the first ``length`` tokens of what was looked up; valid until the tree changes."""

    length: int
    entries: AbstractSet[int]


@dataclass(eq=False, slots=True)
class _Node:
    """A place in the tree, and the edge that leads to it from its parent: ``tokens[start:end]``.

    ``tokens`` belong to an entry that passes here, or did: from the root on they are the same for all entries that
    pass. So edges are split and merged by moving ``start`` and ``end``, and nothing is ever copied.
    """

    tokens: Tokens
    start: int
    end: int
    parent: _Node | None
    children: dict[int, _Node] = field(default_factory=dict)
    entries: set[int] = field(default_factory=set)

    @property
    def first(self) -> int:
        """The token by which the parent finds this node."""
        return int(self.tokens[self.start])


class RadixTree:
    """Entries, named by numbers, and their tokens.

    Every node but the root is the end of an entry or has several children, so a tree of n entries has fewer than 2n
    nodes. Arrays are kept, not copied: who inserts them must not change them afterwards.
    """

    def __init__(self) -> None:
        self._root = _Node(_NO_TOKENS, 0, 0, None)
        self._ends: dict[int, _Node] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, entry: int) -> bool:
        return entry in self._ends

    def insert(self, entry: int, tokens: Tokens) -> None:
        """Add an entry.

        Raises:
            ValueError: the entry is in the tree already.

        """
        if entry in self._ends:
            raise ValueError(f"Entry {entry} is in the tree already.")
        node, length = self._root, 0
        node.entries.add(entry)
        while length < len(tokens):
            child = node.children.get(int(tokens[length]))
            if child is None:
                child = _Node(tokens, length, len(tokens), node)
                node.children[child.first] = child
                length = len(tokens)
            else:
                agreed = common_prefix_len(child.tokens[child.start : child.end], tokens[length:])
                child = _upper_part(child, agreed)
                length += agreed
            child.entries.add(entry)
            node = child
        self._ends[entry] = node

    def remove(self, entry: int) -> None:
        """Take an entry out.

        Raises:
            KeyError: there is no such entry.

        """
        end = self._ends.pop(entry)
        node: _Node | None = end
        while node is not None:
            node.entries.discard(entry)
            node = node.parent
        if end.parent is not None and not end.entries:
            del end.parent.children[end.first]
            end = end.parent
        _merge_with_only_child(end)

    def match(self, tokens: Tokens) -> list[Level]:
        """Look up how far entries agree with ``tokens``, the longest agreement first; disagreement is not listed.

        An entry is in every level that it reaches: where it is met first is how far it agrees.
        """
        levels: list[Level] = []
        node, length = self._root, 0
        while length < len(tokens):
            child = node.children.get(int(tokens[length]))
            if child is None:
                break
            agreed = common_prefix_len(child.tokens[child.start : child.end], tokens[length:])
            length += agreed
            levels.append(Level(length, child.entries))
            if agreed < child.end - child.start:
                break
            node = child
        levels.reverse()
        return levels

    def num_unshared(self, entry: int) -> int:
        """Count the tokens at the end of an entry that no other entry reaches.

        Raises:
            KeyError: there is no such entry.

        """
        node = end = self._ends[entry]
        while node.parent is not None and len(node.entries) == 1:
            node = node.parent
        return end.end - node.end


def common_prefix_len(left: Tokens, right: Tokens) -> int:
    """Count the equal tokens at the beginning of both."""
    length = min(len(left), len(right))
    if length == 0:
        return 0
    differs = left[:length] != right[:length]
    first = int(differs.argmax())
    return first if differs[first] else length


def _upper_part(node: _Node, length: int) -> _Node:
    """Return the node that is ``length`` tokens down the edge to ``node``: the node itself or one put in between."""
    middle = node.start + length
    parent = node.parent
    if middle == node.end or parent is None:
        return node
    upper = _Node(node.tokens, node.start, middle, parent, entries=set(node.entries))
    parent.children[upper.first] = upper
    node.start, node.parent = middle, upper
    upper.children[node.first] = node
    return upper


def _merge_with_only_child(node: _Node) -> None:
    """Join a node that only connects two others with the lower one, which knows the tokens of both edges."""
    parent = node.parent
    if parent is None or len(node.children) != 1:
        return
    (child,) = node.children.values()
    if len(child.entries) == len(node.entries):  # no entry ends here
        child.start, child.parent = node.start, parent
        parent.children[child.first] = child
