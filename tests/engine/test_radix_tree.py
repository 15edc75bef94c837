from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest

from server.engine.radix_tree import Level, RadixTree, _Node, common_prefix_len
from server.engine.runner import Tokens


def tokens(*ids: int) -> Tokens:
    return np.array(ids, dtype=np.int32)


def tree_of(*entries: tuple[int, ...]) -> RadixTree:
    tree = RadixTree()
    for entry, ids in enumerate(entries):
        tree.insert(entry, tokens(*ids))
    return tree


def nodes(tree: RadixTree) -> list[tuple[tuple[int, ...], _Node]]:
    """Every node with the path that leads to it."""
    found: list[tuple[tuple[int, ...], _Node]] = []
    queue: list[tuple[tuple[int, ...], _Node]] = [((), tree._root)]
    while queue:
        path, node = queue.pop()
        found.append((path, node))
        queue += [((*path, *edge(child)), child) for child in node.children.values()]
    return found


def edge(node: _Node) -> list[int]:
    return [int(token) for token in node.tokens[node.start : node.end]]


def check(tree: RadixTree, model: dict[int, tuple[int, ...]]) -> None:
    """The nodes are just those that the entries need, and know just the entries that pass."""
    assert len(tree) == len(model)
    expected = {(), *model.values()}
    ordered = sorted(model.values())
    for left, right in pairwise(ordered):
        expected.add(left[: agreement(left, right)])
    found = nodes(tree)
    assert sorted(path for path, _ in found) == sorted(expected)
    for path, node in found:
        assert node.entries == {entry for entry, ids in model.items() if ids[: len(path)] == path}
        assert node.end == len(path)
        assert tuple(node.tokens[: node.end].tolist()) == path
        for first, child in node.children.items():
            assert child.parent is node
            assert child.first == first


def agreement(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    length = 0
    while length < min(len(left), len(right)) and left[length] == right[length]:
        length += 1
    return length


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        ((), (), 0),
        ((1,), (), 0),
        ((1, 2), (1, 2), 2),
        ((1, 2), (1, 2, 3), 2),
        ((1, 2, 3), (1, 9, 3), 1),
        ((0, 2), (1, 2), 0),
    ],
)
def test_common_prefix_len(left: tuple[int, ...], right: tuple[int, ...], expected: int) -> None:
    assert common_prefix_len(tokens(*left), tokens(*right)) == expected
    assert common_prefix_len(tokens(*right), tokens(*left)) == expected


def test_levels_are_listed_from_the_longest_agreement() -> None:
    tree = tree_of((1, 2, 3, 4), (1, 2, 3, 9), (1, 7), (8,))
    assert tree.match(tokens(1, 2, 3, 4, 5)) == [Level(4, {0}), Level(3, {0, 1}), Level(1, {0, 1, 2})]
    assert tree.match(tokens(1, 2)) == [Level(2, {0, 1}), Level(1, {0, 1, 2})]
    assert tree.match(tokens(5)) == []
    assert tree.match(tokens()) == []
    assert RadixTree().match(tokens(1)) == []


def test_an_edge_is_split_and_joined_again_without_a_copy() -> None:
    tree = tree_of((1, 2, 3, 4))
    tree.insert(1, tokens(1, 2, 9))
    check(tree, {0: (1, 2, 3, 4), 1: (1, 2, 9)})
    tree.remove(1)
    check(tree, {0: (1, 2, 3, 4)})
    ((_, _), (_, leaf)) = nodes(tree)
    assert (leaf.start, leaf.end) == (0, 4)


def test_the_edge_of_an_entry_that_left_lives_on_in_others() -> None:
    tree = tree_of((1, 2, 3, 4), (1, 2, 9))
    tree.remove(0)
    check(tree, {1: (1, 2, 9)})
    assert tree.match(tokens(1, 2, 3)) == [Level(2, {1})]


def test_equal_and_empty_entries() -> None:
    model: dict[int, tuple[int, ...]] = {0: (1, 2), 1: (1, 2), 2: ()}
    tree = tree_of(*model.values())
    check(tree, model)
    assert [tree.num_unshared(entry) for entry in model] == [0, 0, 0]
    for entry in [0, 2, 1]:
        tree.remove(entry)
        del model[entry]
        check(tree, model)


def test_unshared_tokens_are_those_that_no_other_entry_reaches() -> None:
    tree = tree_of((1, 2, 3, 4), (1, 2, 9), (1, 2, 3))
    assert [tree.num_unshared(entry) for entry in range(3)] == [1, 1, 0]


def test_entries_are_named_once() -> None:
    tree = tree_of((1,))
    with pytest.raises(ValueError, match="Entry 0 is in the tree already"):
        tree.insert(0, tokens(2))
    with pytest.raises(KeyError):
        tree.remove(1)
    assert 0 in tree
    assert 1 not in tree


def test_a_thousand_prompts_with_one_token_of_difference() -> None:
    common = np.arange(2000, dtype=np.int32)
    tree = RadixTree()
    for entry in range(1000):
        tree.insert(entry, np.append(common, np.int32(10_000 + entry)))
    assert len(nodes(tree)) == 1002
    for entry in range(0, 1000, 97):
        deepest, common_level = tree.match(np.append(common, np.int32(10_000 + entry)))
        assert deepest == Level(2001, {entry})
        assert common_level.length == 2000
        assert len(common_level.entries) == 1000
        assert tree.num_unshared(entry) == 1
    for entry in range(1000):
        tree.remove(entry)
    check(tree, {})


@pytest.mark.parametrize("seed", range(4))
def test_random_entries_beside_a_dictionary_of_lists(seed: int) -> None:
    dice = random.Random(seed)
    tree, model = RadixTree(), dict[int, tuple[int, ...]]()
    for _ in range(2_500):
        entry = dice.randrange(8)
        if entry in model:
            tree.remove(entry)
            del model[entry]
        else:
            model[entry] = tuple(dice.choices((0, 1), k=dice.randrange(9)))
            tree.insert(entry, tokens(*model[entry]))
        check(tree, model)
        wanted = tuple(dice.choices((0, 1), k=dice.randrange(9)))
        agreements: dict[int, int] = {}
        for level in tree.match(tokens(*wanted)):
            for found in level.entries:
                agreements.setdefault(found, level.length)
        expected = {found: agreement(ids, wanted) for found, ids in model.items()}
        assert agreements == {found: length for found, length in expected.items() if length}
        for found, ids in model.items():
            others = [agreement(ids, other) for name, other in model.items() if name != found]
            assert tree.num_unshared(found) == len(ids) - max(others, default=0)
