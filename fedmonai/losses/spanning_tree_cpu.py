# SPDX-License-Identifier: Apache-2.0
"""Spanning trees of pixel grids on a CPU: Boruvka's rounds and breadth-first orders in numpy's compiled operations.

The first round, which would touch every edge, is four shifted minima of the image. Only the edges that are still
between two components are then sorted, once, by (cost, index); with edges in descending order a plain assignment
``best[component] = edge`` keeps the cheapest edge, because the last write wins. Every tree is worked on by itself, so
that its arrays stay in the cache, and trees are divided among the threads torch may use. That is over twice as fast
as ``scipy.sparse.csgraph.minimum_spanning_tree``, which sorts all edges and joins them one by one, and unlike it
follows the tie rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise

import numpy as np

__all__ = ["LevelOrder", "breadth_first_levels", "compiled_spanning_trees"]


class LevelOrder:
    """A rooted forest in breadth-first order: all roots, then all their children, and so on.

    >>> levels = LevelOrder(np.array([1, 0, 2]), np.array([0, 0, 0]), [0, 1, 3])  # pixel 1 is the parent of 0 and 2
    >>> levels.depth, levels.position.tolist()
    (1, [1, 0, 2])

    Args:
        order: row of the forest (tree * pixels + pixel) at each position.
        parent: position of the parent of each position; it never decreases, so siblings are adjacent.
        bounds: first position of each level, and the number of positions at the end.
    """

    def __init__(self, order: np.ndarray, parent: np.ndarray, bounds: list[int]) -> None:
        self.order = order
        self.parent = parent
        self.bounds = bounds

    @property
    def depth(self) -> int:
        """Edges on the longest path from a root."""
        return len(self.bounds) - 2

    @cached_property
    def position(self) -> np.ndarray:
        """The inverse of ``order``."""
        position = np.empty_like(self.order)
        position[self.order] = np.arange(self.order.size)
        return position

    @cached_property
    def sibling_groups(self) -> tuple[np.ndarray, list[int]]:
        """Positions at which a group of siblings begins, and the first group of each level from the second on."""
        second = self.bounds[1]
        starts = np.flatnonzero(np.diff(self.parent[second:], prepend=-1)) + second
        return starts, starts.searchsorted(self.bounds[1:]).tolist()

    def downward(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Levels from the second to the last: their positions, and the positions of the parents."""
        for begin, end in pairwise(self.bounds[1:]):
            yield slice(begin, end), self.parent[begin:end]

    def upward(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Levels from the last to the second: positions, where sibling groups begin in them, and their parents."""
        starts, group_bounds = self.sibling_groups
        for level in range(self.depth, 0, -1):
            groups = starts[group_bounds[level - 1] : group_bounds[level]]
            begin = self.bounds[level]
            yield slice(begin, self.bounds[level + 1]), groups - begin, self.parent[groups]


def compiled_spanning_trees(costs: np.ndarray, height: int, width: int, threads: int = 1) -> np.ndarray:
    """Bool ``(T, E)`` edges of the minimum spanning trees of costs ``(T, E)``; ties go to the first edge."""
    in_tree = np.zeros(costs.shape, dtype=bool)
    if in_tree.size == 0:
        return in_tree
    ends = _edge_ends(height, width)

    def work(tree: int) -> None:
        _spanning_tree(costs[tree], in_tree[tree], height, width, ends)

    if threads > 1 and len(costs) > 1:
        with ThreadPoolExecutor(min(threads, len(costs))) as pool:
            list(pool.map(work, range(len(costs))))
    else:
        for tree in range(len(costs)):
            work(tree)
    return in_tree


def breadth_first_levels(in_tree: np.ndarray, height: int, width: int, root: int) -> tuple[np.ndarray, LevelOrder]:
    """Parents ``(T, H W)`` and the breadth-first order of the forest; one step takes the next level of all trees."""
    trees, pixels = in_tree.shape[0], height * width
    arcs = _arcs(in_tree, height, width)
    arcs_of_row = arcs.reshape(-1, 4)
    step = np.array([-width, -1, 1, width])
    way_back = 4 * step + np.array([3, 2, 1, 0])
    order, parent = np.empty(trees * pixels, dtype=np.int64), np.empty(trees * pixels, dtype=np.int64)
    front = np.arange(trees) * pixels + root
    order[:trees], parent[:trees], bounds = front, np.arange(trees), [0, trees]
    while bounds[-1] < order.size:
        arc = np.flatnonzero(arcs_of_row.take(front, axis=0))
        source, direction = arc >> 2, arc & 3
        front = front.take(source)
        arcs[4 * front + way_back.take(direction)] = False
        front += step.take(direction)
        begin, end = bounds[-1], bounds[-1] + arc.size
        order[begin:end] = front
        np.add(source, bounds[-2], out=parent[begin:end])
        bounds.append(end)
    parent_row = np.empty_like(order)
    parent_row[order] = order.take(parent)
    return parent_row.reshape(trees, pixels) - (np.arange(trees) * pixels)[:, None], LevelOrder(order, parent, bounds)


def _edge_ends(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    index = np.arange(height * width).reshape(height, width)
    first = np.concatenate([index[:-1].ravel(), index[:, :-1].ravel()])
    return first, np.concatenate([index[1:].ravel(), index[:, 1:].ravel()])


def _split(edges: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertical ``(H - 1, W)`` and horizontal ``(H, W - 1)`` views of values per edge."""
    vertical = (height - 1) * width
    return edges[:vertical].reshape(height - 1, width), edges[vertical:].reshape(height, width - 1)


def _spanning_tree(
    costs: np.ndarray, in_tree: np.ndarray, height: int, width: int, ends: tuple[np.ndarray, np.ndarray]
) -> None:
    """Mark the edges of one minimum spanning tree in ``in_tree``."""
    if np.isnan(costs.min()):
        costs = np.where(np.isnan(costs), np.inf, costs)
    component, count = _merge(_first_round(costs, in_tree, height, width))
    grid = component.reshape(height, width)
    live = np.empty(costs.size, dtype=bool)
    vertical, horizontal = _split(live, height, width)
    np.not_equal(grid[1:], grid[:-1], out=vertical)
    np.not_equal(grid[:, 1:], grid[:, :-1], out=horizontal)
    edge = _descending(costs, np.flatnonzero(live))
    one, other = component.take(ends[0].take(edge)), component.take(ends[1].take(edge))
    while count > 1:
        serial = np.arange(edge.size)
        best_one, best_other = np.full(count, -1), np.full(count, -1)
        best_one[one] = serial  # later means cheaper, and the last write wins
        best_other[other] = serial
        best = np.maximum(best_one, best_other)
        in_tree[edge.take(best)] = True
        component, count = _merge(np.where(best_other > best_one, one.take(best), other.take(best)))
        one, other = component.take(one), component.take(other)
        keep = np.flatnonzero(one != other)
        one, other, edge = one.take(keep), other.take(keep), edge.take(keep)


def _first_round(costs: np.ndarray, in_tree: np.ndarray, height: int, width: int) -> np.ndarray:
    """Mark the cheapest edge of every pixel and return the pixel at its other end.

    In the order of the tie rule the edges of a pixel are: up, down, left, right.
    """
    down, right = _split(costs, height, width)
    best = np.full((height, width), np.inf, dtype=costs.dtype)
    best[1:] = down
    np.minimum(best[:-1], down, out=best[:-1])
    np.minimum(best[:, 1:], right, out=best[:, 1:])
    np.minimum(best[:, :-1], right, out=best[:, :-1])
    picks = np.zeros((4, height, width), dtype=bool)
    np.equal(down, best[1:], out=picks[0, 1:])
    np.equal(down, best[:-1], out=picks[1, :-1])
    np.equal(right, best[:, 1:], out=picks[2, :, 1:])
    np.equal(right, best[:, :-1], out=picks[3, :, :-1])
    taken = picks[0].copy()
    for pick in picks[1:]:
        np.greater(pick, taken, out=pick)  # true and not taken
        taken |= pick
    vertical, horizontal = _split(in_tree, height, width)
    np.logical_or(picks[1, :-1], picks[0, 1:], out=vertical)
    np.logical_or(picks[3, :, :-1], picks[2, :, 1:], out=horizontal)
    code = picks.view(np.uint8)
    direction = code[1] + 2 * code[2] + 3 * code[3]
    return np.array([-width, width, -1, 1]).take(direction.ravel()) + np.arange(height * width)


def _merge(target: np.ndarray) -> tuple[np.ndarray, int]:
    """New component numbers after every component is joined to its ``target``, and how many are left.

    Cycles of two, made by an edge that both its ends chose, are opened; chains are followed by pointer jumping.
    """
    own = np.arange(target.size)
    mutual = np.flatnonzero((target.take(target) == own) & (own < target))
    target[mutual] = mutual
    while True:
        further = target.take(target)
        if np.array_equal(further, target):
            break
        target = further
    number = np.cumsum(target == own) - 1
    return number.take(target), int(number[-1]) + 1


def _descending(costs: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Edges from the most expensive to the cheapest; of equal ones the first comes last."""
    values = costs.take(edge)
    if values.dtype != np.float32:
        return edge.take(np.argsort(values, kind="stable")[::-1])
    # The bits of non-negative floats sort like the floats, and numpy sorts 16-bit integers by radix: two passes take
    # a third of the time of one sort of the floats.
    bits = values.view(np.uint32)
    low = np.argsort((bits & np.uint32(0xFFFF)).astype(np.uint16), kind="stable")
    high = np.argsort((bits >> np.uint32(16)).astype(np.uint16).take(low), kind="stable")
    return edge.take(low.take(high)[::-1])


def _arcs(in_tree: np.ndarray, height: int, width: int) -> np.ndarray:
    """Flat bool ``(T H W 4)``: whether the tree has the edge from a pixel up, left, right, down."""
    trees, vertical = in_tree.shape[0], (height - 1) * width
    down = in_tree[:, :vertical].reshape(trees, height - 1, width)
    right = in_tree[:, vertical:].reshape(trees, height, width - 1)
    present = np.zeros((trees, height, width, 4), dtype=bool)
    present[:, 1:, :, 0], present[:, :-1, :, 3] = down, down
    present[:, :, 1:, 1], present[:, :, :-1, 2] = right, right
    return present.reshape(-1)
