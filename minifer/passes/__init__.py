"""Graph rewrites: each pass is a pure function Graph -> Graph, in a file of its own.

The driver checks the graph after each pass and names the pass that broke it. A pass that is about operators which the
graph does not hold is not even imported. MINIFER_DEBUG=1 prints what each did, MINIFER_STOP=n stops after n passes (to
find the one that changes a result).
"""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from typing import Any

from minifer.errors import MiniferError
from minifer.ir import Graph
from minifer.record import Record


class Pass(Record):
    """The function `name` of a module here, for graphs that hold all operators of `needs` (one of "A|B")."""

    module: str
    name: str
    needs: tuple[str, ...] = ()
    takes: str = ""  # what it is given besides the graph: "types" (what is known of them) or "max_bytes"

    def concerns(self, operators: set[str]) -> bool:
        """Whether a graph with these operators may hold what the pass looks for."""
        return all(not operators.isdisjoint(either.split("|")) for either in self.needs)

    def __call__(self, graph: Graph, *given: Any) -> Graph:
        return getattr(import_module(f"minifer.passes.{self.module}"), self.name)(graph, *given)


#: in the order in which they run
PASSES: tuple[Pass, ...] = (
    Pass("qdq", "integer_operators", ("DequantizeLinear",)),
    Pass("fold", "fold_constants", takes="max_bytes"),
    Pass("clean", "remove_identity", ("Identity|Dropout",)),
    Pass("clean", "merge_equal"),
    Pass("activations", "hard_swish", ("Clip", "Add", "Mul")),
    Pass("scale", "fold_scale", ("Conv",)),
    Pass("movement", "fold_shapes", ("Shape",), "types"),
    Pass("qdq", "dynamic_products", ("MatMulInteger",), "types"),
    Pass("movement", "remove_reshapes", ("Reshape|Expand|Resize",), "types"),
    Pass("linear", "gemm_rows", ("Gemm", "Reshape"), "types"),
    Pass("linear", "split_columns", ("Split", "MatMul"), "types"),
    Pass("linear", "fold_columns", ("MatMul", "Mul|Div"), "types"),
    Pass("gelu", "gates", ("Erf|Tanh|Sigmoid", "Mul"), "types"),
    Pass("excite", "excite", ("GlobalAveragePool", "Mul", "Add"), "types"),
    Pass("layer_norm", "layer_norm", ("ReduceMean", "Sqrt"), "types"),
    Pass("attention", "attention", ("MatMul", "Softmax"), "types"),
    Pass("pointwise", "resize_last", ("Conv", "Concat", "Resize"), "types"),
    Pass("movement", "residuals_first", ("Transpose", "Add"), "types"),
    Pass("movement", "activations_first", ("Reshape|Transpose|Flatten|Squeeze|Unsqueeze",), "types"),
    Pass("clean", "remove_dead"),
)


def optimise(graph: Graph, max_bytes: int | None = None) -> Graph:
    """Run all passes. `max_bytes` bounds what constant folding may make."""
    debug = int(os.environ.get("MINIFER_DEBUG", "0"))
    stop = int(os.environ.get("MINIFER_STOP", len(PASSES)))
    given: dict[str, Any] = {"max_bytes": max_bytes}
    operators = {node.op for node in graph.nodes}
    for step in PASSES[:stop]:
        if not step.concerns(operators):
            continue
        start, before = time.perf_counter(), len(graph.nodes)
        if step.takes == "types" and "types" not in given:
            from minifer.passes.match import Types

            given["types"] = Types(graph)
        try:
            made = step(graph, given[step.takes]) if step.takes else step(graph)
            if made is not graph:
                made.check()
                graph, operators = made, {node.op for node in made.nodes}
        except MiniferError as error:
            raise MiniferError(f"the pass {step.name} broke the graph: {error}") from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise MiniferError(f"the pass {step.name} failed ({what}); optimize=False leaves it out") from error
        if debug >= 1:
            spent = 1e3 * (time.perf_counter() - start)
            print(f"{step.name}: {before} -> {len(graph.nodes)} nodes, {spent:.1f} ms", file=sys.stderr)
    return graph
