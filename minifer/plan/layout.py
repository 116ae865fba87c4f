"""Layouts: converting a tensor between row-major and channels-last memory order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minifer.ir import Node
from minifer.ops.registry import CHANNELS_LAST
from minifer.plan.plan import Slot

if TYPE_CHECKING:
    from minifer.plan.lower import Planner


def convert(planner: Planner, source: Slot, layout: str, node: Node) -> Slot:
    """Add the step that rewrites `source` in `layout`, and return the new slot. `node` is whose result it is.

    Both directions are a batch of matrix transpositions: (N, C, S) <-> (N, S, C).
    """
    shape = source.shape
    if layout == CHANNELS_LAST:
        batch, channels, *spatial = shape
        rows, columns, out = channels, _product(spatial), (batch, *spatial, channels)
    else:
        batch, *spatial, channels = shape
        rows, columns, out = _product(spatial), channels, (batch, channels, *spatial)
    target = Slot(planner.temporary(source.nbytes), source.dtype, out, 0, layout)
    if rows == 1 or columns == 1:  # the same bytes in both orders
        return Slot(source.buffer, source.dtype, out, source.offset, layout)
    from minifer.kernels import move

    bits = 8 * source.nbytes // max(source.size, 1)
    planner.emit(move.transpose_matrices[f"u{bits}"], (source, target, batch, rows, columns), node)
    return target


def _product(dims: list[int]) -> int:
    out = 1
    for d in dims:
        out *= d
    return out
