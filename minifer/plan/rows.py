"""Rows apart: where a product reads a tensor, its rows may lie a cache line further apart than they are long.

A register tile of a product reads six rows at once. Where the distance between rows is a multiple of 4096 bytes, their
elements fall into one set of a first-level cache (64 sets of 64 bytes, on most processors), and the tile waits: 1024
channels take 3% longer than 1040 (docs/performance.md), and up to 10% on a machine that others disturb. So who writes
such a tensor leaves a gap behind each row, if all that reads it can live with that: products (`Op.rows` says so), and
additions that a product does on the way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from minifer.errors import MiniferError
from minifer.ir import Node
from minifer.ops import registry
from minifer.ops.registry import Call
from minifer.plan.plan import Slot

if TYPE_CHECKING:
    from minifer.plan.lower import Planner

GAP = 16  # elements left out behind a row
SET = 1024  # float32 between elements of one set


def gap_of(planner: Planner, name: str, columns: int) -> int:
    """Elements to leave out behind each row of a float32 tensor that is about to be written: 0 or GAP."""
    scope = planner.scope
    if columns % (SET // 2) or name in scope.leaving:
        return 0
    steps = [_step(planner, name, scope.nodes[use]) for use in scope.uses.get(name, [])]
    return GAP if all(steps) and any(columns * step % SET == 0 for step in steps) else 0


def _step(planner: Planner, name: str, node: Node) -> int:
    """How many rows a reader's kernel goes on from one row of its tile to the next; 0: it needs rows without gaps."""
    op = registry.select(node)
    if op is not None and op.rows is not None and node.inputs[0] == name and node.reads.count(name) == 1:
        known = [planner.known.get(n) if n else None for n in node.inputs]
        try:
            return op.rows(Call(node, [planner.types.get(n) if n else None for n in node.inputs], known))
        except MiniferError:  # it is told when the node is planned
            return 0
    return int(node.op == "Add" and not node.domain and _on_the_way(planner, name, node))


def _on_the_way(planner: Planner, name: str, node: Node) -> bool:
    """Whether an addition will be the end of a product that is still to come."""
    if node.inputs.count(name) != 1:
        return False
    other = node.inputs[1] if node.inputs[0] == name else node.inputs[0]
    maker = planner.scope.makers.get(other)
    if maker is None or planner.in_memory(other) or len(planner.scope.uses[other]) != 1:
        return False
    op = registry.select(maker)
    return op is not None and op.rows is not None


def close(planner: Planner, source: Slot, node: Node) -> Slot:
    """Add the step that copies a tensor with gaps to one without, and return the new slot."""
    import numpy as np

    from minifer.kernels import move
    from minifer.kernels.odometer import RANK

    columns = source.shape[-1]
    target = Slot(planner.temporary(4 * source.size), source.dtype, source.shape, 0, source.layout)
    table = np.ones((2, RANK), np.int64)
    table[:, -2:] = [source.size // columns, columns], [columns + source.gap, 1]
    planner.emit(move.copy_strided["u32"], (source, target, 0, planner.const(table)), node)
    return target
