"""Graph rewrites: each pass is a pure function Graph -> Graph, in a file of its own.

The driver checks the graph after each pass and names the pass that broke it. MINIFER_DEBUG=1 prints what each did,
MINIFER_STOP=n stops after n passes (to find the one that changes a result).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from minifer.errors import MiniferError
from minifer.ir import Graph
from minifer.passes.activations import hard_swish
from minifer.passes.attention import attention
from minifer.passes.clean import merge_equal, remove_dead, remove_identity
from minifer.passes.excite import excite
from minifer.passes.fold import fold_constants
from minifer.passes.gelu import gates
from minifer.passes.layer_norm import layer_norm
from minifer.passes.linear import fold_columns, gemm_rows, split_columns
from minifer.passes.match import Types
from minifer.passes.movement import activations_first, fold_shapes, remove_reshapes, residuals_first
from minifer.passes.pointwise import resize_last
from minifer.passes.qdq import dynamic_products, integer_operators
from minifer.passes.scale import fold_scale

Pass = Callable[..., Graph]

#: passes that also take what is known of types
TYPED: tuple[Pass, ...] = (
    fold_shapes, dynamic_products, remove_reshapes, gemm_rows, split_columns, fold_columns, gates, excite, layer_norm,
    attention, resize_last, residuals_first, activations_first,
)  # fmt: skip
PASSES: tuple[Pass, ...] = (
    integer_operators, fold_constants, remove_identity, merge_equal, hard_swish, fold_scale, *TYPED, remove_dead,
)  # fmt: skip


def optimise(graph: Graph, max_bytes: int | None = None) -> Graph:
    """Run all passes. `max_bytes` bounds what constant folding may make."""
    debug = int(os.environ.get("MINIFER_DEBUG", "0"))
    stop = int(os.environ.get("MINIFER_STOP", len(PASSES)))
    types: Types | None = None
    for step in PASSES[:stop]:
        start, before = time.perf_counter(), len(graph.nodes)
        try:
            if step in TYPED:
                types = types or Types(graph)
                made = step(graph, types)
            else:
                made = fold_constants(graph, max_bytes) if step is fold_constants else step(graph)
            if made is not graph:
                made.check()
                graph = made
        except MiniferError as error:
            raise MiniferError(f"the pass {step.__name__} broke the graph: {error}") from error
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise MiniferError(f"the pass {step.__name__} failed ({what}); optimize=False leaves it out") from error
        if debug >= 1:
            spent = 1e3 * (time.perf_counter() - start)
            print(f"{step.__name__}: {before} -> {len(graph.nodes)} nodes, {spent:.1f} ms", file=sys.stderr)
    return graph
