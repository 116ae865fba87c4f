"""EmbedLayerNormalization as kernel calls: the sum of the embeddings, then a layer normalisation."""

from __future__ import annotations

from typing import Any

from minifer.kernels import embed, norm
from minifer.ops.registry import Declined


def lower_embed_layer_norm(low: Any) -> Declined | None:
    """float32 EmbedLayerNormalization."""
    tables = (2, 3, 4) if low.has(1) and low.has(4) else (2, 3)
    ids = (0, 1) if len(tables) == 3 else (0,)
    (batch, length), hidden = low.shape(0), low.shape(2)[1]
    if any(low.dtype(i) != "float32" for i in (*tables, 5, 6)) or low.dtype(0) not in ("int32", "int64"):
        return Declined(f"no embedding kernel for {low.dtype(2)}")
    fits = all(len(low.shape(i)) == 2 and low.shape(i)[1] == hidden for i in tables)
    fits = fits and all(low.shape(i) == (batch, length) for i in (*ids, 7) if low.has(i))
    places = low.shape(8) if low.has(8) else None
    if not fits or places not in (None, (1, length), (batch, length)) or (low.has(7) and low.dtype(7) != "int32"):
        return Declined("ids, positions, mask and tables do not fit together")
    if any(low.dtype(i) != low.dtype(0) for i in (*ids, 8) if low.has(i)):
        return Declined("ids of different types")
    mode = embed.COUNTED if places is None else embed.SHARED if places[0] == 1 else embed.EACH
    index_bytes = 8 if low.dtype(0) == "int64" else 4
    total = low.output(2) if low.wants(2) else low.scratch(4 * batch * length * hidden, "float32")
    segments, segment = (low.input(1), low.input(4)) if len(tables) == 3 else (None, None)
    rows = [low.shape(i)[0] for i in tables] + [0] * (3 - len(tables))
    low.call(
        embed.embed_sum, low.input(0), low.input(8) if low.has(8) else None, segments, low.input(2), low.input(3),
        segment, total, batch, length, hidden, *rows, index_bytes, mode, int(segment is not None),
    )  # fmt: skip
    low.call(
        norm.layer_norm, total, None, low.input(5), low.input(6), low.output(0), None, None, None, batch * length,
        hidden, low.attr("epsilon", 1e-12), norm.HAS_BIAS,
    )  # fmt: skip
    if low.wants(1):
        mask = low.input(7) if low.has(7) else None
        low.call(embed.count_ones, mask, low.output(1), batch, length, int(mask is not None))
    return None
