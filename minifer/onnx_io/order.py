"""Bringing nodes into an order in which every value is written before it is read."""

from __future__ import annotations

from collections.abc import Sequence

from minifer.errors import ModelError
from minifer.ir import Node


def reads(node: Node) -> list[str]:
    """The names that a node reads, those that its subgraphs take from outside included."""
    return [name for name in node.reads if name]


def in_order(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes, each after those whose outputs it reads; as given where that holds already.

    Of several nodes that could stand next, the one given first does. ModelError for a cycle.
    """
    if _ordered(nodes):
        return tuple(nodes)
    import heapq

    writer = {name: i for i, node in enumerate(nodes) for name in node.outputs if name}
    needs = [{writer[name] for name in reads(node) if name in writer} for node in nodes]
    users: list[list[int]] = [[] for _ in nodes]
    for i, need in enumerate(needs):
        for j in need:
            users[j].append(i)
    missing = [len(need) for need in needs]
    ready = [i for i, count in enumerate(missing) if not count]
    order: list[int] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(i)
        for j in users[i]:
            missing[j] -= 1
            if not missing[j]:
                heapq.heappush(ready, j)
    if len(order) < len(nodes):
        raise ModelError(f"the graph has a cycle: {_cycle(nodes, needs, missing)}")
    return tuple(nodes[i] for i in order)


def _ordered(nodes: Sequence[Node]) -> bool:
    """True where no node reads what it or a later one writes."""
    later = {name for node in nodes for name in node.outputs if name}
    for node in nodes:
        if not later.isdisjoint(node.reads):
            return False
        later.difference_update(node.outputs)
    return True


def _cycle(nodes: Sequence[Node], needs: Sequence[set[int]], missing: Sequence[int]) -> str:
    """One cycle among the nodes that could not be placed, as `a -> b -> a`."""
    at = next(i for i, count in enumerate(missing) if count)
    path: list[int] = []
    seen: dict[int, int] = {}
    while at not in seen:  # each unplaced node reads from an unplaced one: walk back until a node comes twice
        seen[at] = len(path)
        path.append(at)
        at = next(i for i in sorted(needs[at]) if missing[i])
    circle = path[seen[at] :][::-1]
    labels = [nodes[i].label for i in [*circle, circle[0]]]
    return " -> ".join(labels if len(labels) <= 12 else [*labels[:6], "...", *labels[-5:]])
