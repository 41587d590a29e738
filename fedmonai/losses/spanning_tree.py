# SPDX-License-Identifier: Apache-2.0
"""Minimum spanning trees of 4-connected pixel grids, a whole batch at once, on any device.

Three backends give the same trees. On a CPU the choice is ``"kernel"`` (:mod:`fedmonai.losses.tree_kernel`), where
there is a C compiler, else ``"compiled"`` (:mod:`fedmonai.losses.spanning_tree_cpu`), which uses numpy. ``"tensor"`` is
made of fixed-shape tensor operations only: it never asks the device for a value, so it runs on an accelerator without a
host round trip (and on a CPU, where the tests compare them).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedmonai.errors import ConfigError
from fedmonai.losses.spanning_tree_cpu import LevelOrder, breadth_first_levels, compiled_spanning_trees
from fedmonai.losses.tree_kernel import TreeOrder, kernel, rooted_trees, spanning_trees

__all__ = ["SpanningForest", "edge_costs", "grid_edges", "minimum_spanning_trees", "root_forest"]

BACKENDS = ("auto", "kernel", "compiled", "tensor")
UP, LEFT, RIGHT, DOWN = range(4)  # the opposite of direction d is 3 - d


@dataclass(frozen=True)
class SpanningForest:
    """Rooted spanning trees of ``T`` grids of one size.

    >>> forest = SpanningForest(parent=torch.tensor([[0, 0, 3, 1]]), height=2, width=2)  # pixels 0 - 1 - 3 - 2
    >>> forest.root_mask.tolist()
    [[True, False, False, False]]

    Args:
        parent: ``(T, H * W)`` int64, the parent pixel of each pixel within its own grid; the root is its own parent.
        height: rows of each grid.
        width: columns of each grid.
        levels: the breadth-first order of the forest (backends of a CPU), or None: filters then use path doubling.
    """

    parent: Tensor
    height: int
    width: int
    levels: LevelOrder | TreeOrder | None = None

    @property
    def flat_parent(self) -> Tensor:
        """``(T * H * W,)`` parents as indices into the rows of the whole forest."""
        trees, pixels = self.parent.shape
        return (self.parent + pixels * torch.arange(trees, device=self.parent.device)[:, None]).reshape(-1)

    @property
    def root_mask(self) -> Tensor:
        """``(T, H * W)`` bool, true at the root of each tree."""
        return self.parent == torch.arange(self.parent.shape[1], device=self.parent.device)


def grid_edges(height: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """End points ``(2, E)`` of the edges of a 4-connected grid, ``E = 2 H W - H - W``.

    All vertical edges ``(r, c)-(r + 1, c)`` row by row, then all horizontal ones ``(r, c)-(r, c + 1)``. Edges of equal
    cost are taken in this order, which makes every minimum spanning tree unique.
    """
    index = torch.arange(height * width, device=device).reshape(height, width)
    first = torch.cat([index[:-1].reshape(-1), index[:, :-1].reshape(-1)])
    second = torch.cat([index[1:].reshape(-1), index[:, 1:].reshape(-1)])
    return torch.stack([first, second])


def edge_costs(features: Tensor) -> Tensor:
    """Squared Euclidean distances ``(T, E)`` between neighboring pixels of ``(T, C, H, W)`` features.

    Channels are added one after the other in separate operations, so the costs, and with them the trees, are the same
    to the bit on every device. The release adds 1 to each cost before it builds the tree in float32, which only makes
    ties (specification, finding 25); it is left out.
    """
    vertical = horizontal = None
    for channel in features.unbind(1):
        down = channel[:, 1:] - channel[:, :-1]
        right = channel[:, :, 1:] - channel[:, :, :-1]
        down, right = down * down, right * right
        vertical = down if vertical is None else vertical + down
        horizontal = right if horizontal is None else horizontal + right
    if vertical is None or horizontal is None:
        raise ConfigError(f"edge_costs: features of shape {tuple(features.shape)} have no channel")
    return torch.cat([vertical.flatten(1), horizontal.flatten(1)], 1)


def choose_backend(backend: str, device: torch.device) -> str:
    """``"auto"`` is the kernel (without a compiler numpy) on a CPU and tensor operations elsewhere."""
    if backend not in BACKENDS:
        raise ConfigError(f"tree backend {backend!r} is unknown; use one of {', '.join(BACKENDS)}")
    if backend in ("kernel", "compiled") and device.type != "cpu":
        raise ConfigError(f"tree backend '{backend}' works on cpu tensors, not on {device}; use 'auto' or 'tensor'")
    if backend == "kernel" and kernel() is None:
        raise ConfigError("tree backend 'kernel' cannot be built here (see the log); use 'auto' or 'compiled'")
    if backend != "auto":
        return backend
    if device.type != "cpu":
        return "tensor"
    return "compiled" if kernel() is None else "kernel"


@torch.no_grad()
def minimum_spanning_trees(costs: Tensor, height: int, width: int, backend: str = "auto") -> Tensor:
    """Edges of the minimum spanning tree of every grid: bool ``(T, E)`` with ``H W - 1`` true per row.

    Ties go to the edge that comes first in :func:`grid_edges` (Kruskal with a stable sort). No gradient passes.

    Args:
        costs: ``(T, E)`` finite edge costs >= 0 in the order of :func:`grid_edges`; NaN counts as infinite.
        height: rows of each grid.
        width: columns of each grid.
        backend: ``auto``, ``kernel``, ``compiled`` or ``tensor``.

    Raises:
        ConfigError: unknown backend, or costs that do not fit the grid.
    """
    edges = 2 * height * width - height - width
    if costs.dim() != 2 or costs.shape[1] != edges:
        raise ConfigError(f"costs of shape {tuple(costs.shape)} do not fit a {height}x{width} grid ({edges} edges)")
    chosen = choose_backend(backend, costs.device)
    if chosen == "kernel":
        return torch.from_numpy(spanning_trees(kernel(), costs.numpy(), height, width, torch.get_num_threads()))
    if chosen == "compiled":
        return torch.from_numpy(compiled_spanning_trees(costs.numpy(), height, width, torch.get_num_threads()))
    return _boruvka(costs, height, width)


@torch.no_grad()
def root_forest(in_tree: Tensor, height: int, width: int, root: int = 0, backend: str = "auto") -> SpanningForest:
    """Direct the trees of :func:`minimum_spanning_trees` towards pixel ``root`` (0 is the top left corner).

    Tree filters do not depend on the choice of the root.
    """
    chosen = choose_backend(backend, in_tree.device)
    if chosen == "kernel":
        parent, order = rooted_trees(kernel(), in_tree.numpy(), height, width, root)
        return SpanningForest(torch.from_numpy(parent), height, width, order)
    if chosen == "compiled":
        parent, levels = breadth_first_levels(in_tree.numpy(), height, width, root)
        return SpanningForest(torch.from_numpy(parent), height, width, levels)
    return SpanningForest(_euler_parents(in_tree, height, width, root), height, width)


def ceil_log2(count: int) -> int:
    """Doublings that are enough to cover ``count`` steps."""
    return max(count - 1, 0).bit_length()


def _boruvka(costs: Tensor, height: int, width: int) -> Tensor:
    """Boruvka's algorithm on all grids at once; every round has the same shapes and there is a fixed number of them.

    Each round at least halves the components, so ``ceil(log2 n)`` rounds always suffice, and after ``r`` rounds the
    chains of hooks are no longer than ``n / 2^r`` (about 8 rounds do the work on real images; further ones find
    nothing left and cost little).
    """
    trees, edges = costs.shape
    pixels = height * width
    first, second = grid_edges(height, width, costs.device)
    # One sort turns (cost, edge index) into an integer rank; rank `edges` stands for "no edge".
    order = torch.argsort(costs, dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(edges, device=costs.device).expand(trees, -1))
    order = torch.nn.functional.pad(order, (0, 1), value=edges)
    own = torch.arange(pixels, device=costs.device).expand(trees, -1)
    component = own.clone()
    first_row = pixels * torch.arange(trees, device=costs.device)[:, None]
    in_tree = torch.zeros((trees, edges + 1), dtype=torch.bool, device=costs.device)
    for done in range(ceil_log2(pixels)):
        one, other = component[:, first], component[:, second]
        live_rank = torch.where(one != other, rank, edges)
        best = torch.full_like(component, edges)
        best = best.scatter_reduce(1, one, live_rank, "amin").scatter_reduce(1, other, live_rank, "amin")
        chosen = order.gather(1, best)
        in_tree.scatter_(1, chosen, True)
        ends = chosen.clamp(max=edges - 1)
        one, other = one.gather(1, ends), other.gather(1, ends)
        target = torch.where(one == own, other, one)
        target = torch.where(best < edges, target, own)
        # Two components that chose the same edge point at each other: the smaller id becomes the root.
        mutual = (target.gather(1, target) == own) & (own < target)
        target = torch.where(mutual, own, target)
        root = (target + first_row).to(torch.int32).reshape(-1)  # half the bytes in the loop that moves the most
        for _ in range(ceil_log2(max(pixels >> done, 2))):
            root = root.index_select(0, root)
        component = root.reshape(trees, pixels).gather(1, component) - first_row
    return in_tree[:, :edges].clone()


def _tree_neighbors(in_tree: Tensor, height: int, width: int) -> Tensor:
    """``(T, H, W, 4)`` bool: whether the tree has the edge from a pixel up, left, right, down."""
    trees, vertical = in_tree.shape[0], (height - 1) * width
    down = in_tree[:, :vertical].reshape(trees, height - 1, width)
    right = in_tree[:, vertical:].reshape(trees, height, width - 1)
    present = torch.zeros((trees, height, width, 4), dtype=torch.bool, device=in_tree.device)
    present[:, 1:, :, UP], present[:, :-1, :, DOWN] = down, down
    present[:, :, 1:, LEFT], present[:, :, :-1, RIGHT] = right, right
    return present


def _euler_parents(in_tree: Tensor, height: int, width: int, root: int) -> Tensor:
    """Parents from the Euler tour of each tree, ranked by pointer jumping.

    An arc is (pixel, direction). After arc u->v the tour leaves v by the next arc in circular order after v->u. The
    tour is cut where it would enter the root's first arc; u is the parent of v if arc u->v comes before arc v->u.
    """
    trees, pixels = in_tree.shape[0], height * width
    device = in_tree.device
    present = _tree_neighbors(in_tree, height, width)
    # leave[v, d]: the direction by which the tour leaves v after it came in through the edge in direction d of v.
    leave = torch.zeros(present.shape, dtype=torch.long, device=device)
    for direction in range(4):
        for turn in (4, 3, 2, 1):  # the nearest present direction wins: it is written last
            candidate = (direction + turn) % 4
            leave[..., direction] = torch.where(present[..., candidate], candidate, leave[..., direction])
    pixel = torch.arange(pixels, device=device)
    neighbor = torch.stack([pixel - width, pixel - 1, pixel + 1, pixel + width], 1).clamp(0, pixels - 1).reshape(-1)
    arrival = 4 * neighbor + 3 - torch.arange(4 * pixels, device=device) % 4  # in the opposite direction of v
    following = 4 * neighbor + leave.reshape(trees, -1)[:, arrival]
    own = torch.arange(4 * pixels, device=device)
    first_arc = 4 * root + present.reshape(trees, pixels, 4)[:, root].to(torch.uint8).argmax(1, keepdim=True)
    ends = (following == first_arc) | ~present.reshape(trees, -1)
    following = torch.where(ends, own, following) + 4 * pixels * torch.arange(trees, device=device)[:, None]
    following = following.to(torch.int32).reshape(-1)
    remaining = (~ends).to(torch.int32).reshape(-1)
    for _ in range(ceil_log2(2 * pixels)):
        remaining = remaining + remaining.index_select(0, following)
        following = following.index_select(0, following)
    parent = pixel + _towards_root(remaining.reshape(present.shape), present).reshape(trees, pixels)
    parent[:, root] = root
    return parent


def _towards_root(remaining: Tensor, present: Tensor) -> Tensor:
    """Offset from each pixel to the neighbor whose arc towards it comes first in the tour: its parent."""
    width = present.shape[2]
    incoming = torch.full_like(remaining, -1)  # the rank of the arc that arrives over the edge in direction d
    incoming[:, 1:, :, UP] = remaining[:, :-1, :, DOWN]
    incoming[:, :-1, :, DOWN] = remaining[:, 1:, :, UP]
    incoming[:, :, 1:, LEFT] = remaining[:, :, :-1, RIGHT]
    incoming[:, :, :-1, RIGHT] = remaining[:, :, 1:, LEFT]
    up, left, right, down = (present & (incoming > remaining)).long().unbind(-1)
    return width * (down - up) + right - left
