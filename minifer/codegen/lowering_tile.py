"""What the register tile of kernels/simd.py becomes in LLVM IR: an aggregate of vectors that stays in registers.

Every primitive unrolls over the tile's rows and columns when it is lowered; the tile's shape is the target's.
"""

from __future__ import annotations

from llvmlite import ir
from numba.core import types

from minifer.codegen.lowering import (
    I32,
    I64,
    intrinsic,
    is_integer,
    is_number,
    load_part,
    load_vector,
    lowers,
    shuffle,
    splat,
    store_part,
    store_vector,
)
from minifer.codegen.numba_bridge import PointerType, RowsType, TileType, VectorType
from minifer.kernels import simd
from minifer.kernels.target import TILE_DATA

F32 = types.float32
_POINTER = PointerType(F32)


def tile_type(context) -> TileType:
    """The target's f32 tile, in natural vectors if they divide it, else in vectors of 4 lanes."""
    machine = context.machine
    lanes = machine.vector // 4 if machine.nr % (machine.vector // 4) == 0 else 4
    return TileType(F32, machine.mr, machine.nr // lanes, lanes)


def _is_tile(context, kind) -> bool:
    """Whether it is an f32 tile of the target: whole, short, or a row."""
    return any(kind == f32_tile(context, rows) for rows in (context.machine.mr, context.machine.short, 1))


def f32_tile(context, rows: int) -> TileType:
    """The target's f32 tile, with fewer rows."""
    tile = tile_type(context)
    return TileType(F32, rows, tile.vectors, tile.lanes)


def _vector(tile: TileType) -> VectorType:
    return VectorType(tile.element, tile.lanes)


def _get(builder, acc, tile: TileType, i: int, j: int):
    return builder.extract_value(acc, i * tile.vectors + j)


def _put(builder, acc, value, tile: TileType, i: int, j: int):
    return builder.insert_value(acc, value, i * tile.vectors + j)


def _fits(kind, expected) -> bool:
    return kind == expected if isinstance(expected, types.Type) else expected(kind)


def _tile_rule(function, result, *expected):
    """Register a rule whose arguments after the tile are checked against types or predicates.

    `emit(context, builder, tile, values)` makes the value; integers arrive as i64, numbers as f32.
    `result` is "tile" or a Numba type.
    """

    def register(emit):
        def rule(context, *kinds):
            tile = next((k for k in kinds if _is_tile(context, k)), tile_type(context))
            wanted = [tile if e == "tile" else e for e in expected]
            if len(kinds) != len(wanted) or not all(_fits(k, w) for k, w in zip(kinds, wanted)):
                return None
            takes = tuple(types.int64 if w is is_integer else F32 if w is is_number else w for w in wanted)

            def run(builder, values):
                made = emit(context, builder, tile, *values)
                return context.get_dummy_value() if made is None else made

            return (tile if result == "tile" else result), takes, run

        return lowers(function)(rule)

    return register


# ---------------------------------------------------------------- rows


def _rows_rule(context, emit, *kinds):
    a = kinds[0]
    if not isinstance(a, PointerType):
        return None
    rows = RowsType(a.element, context.machine.mr)

    def run(builder, values):
        last = builder.sub(values[2], I64(1))
        result = ir.Constant(context.get_value_type(rows), ir.Undefined)
        for i in range(rows.count):
            row = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last) if i else I64(0)
            result = builder.insert_value(result, builder.gep(values[0], [emit(builder, values, row)]), i)
        return result

    return rows, (a, kinds[1], types.int64), run


@lowers(simd.rows_strided)
def _rows_strided(context, a, lda, m):
    if not is_integer(lda) or not is_integer(m):
        return None
    return _rows_rule(context, lambda builder, v, row: builder.mul(row, v[1]), a, types.int64, m)


@lowers(simd.rows_table)
def _rows_table(context, a, table, m):
    if table != PointerType(types.int64) or not is_integer(m):
        return None
    return _rows_rule(context, lambda builder, v, row: builder.load(builder.gep(v[1], [row])), a, table, m)


# ---------------------------------------------------------------- accumulating


@lowers(simd.tile_zero)
def _tile_zero(context):
    tile = tile_type(context)
    return tile, (), lambda builder, values: ir.Constant(context.get_value_type(tile), None)


@lowers(simd.tile_zero_short)
def _tile_zero_short(context):
    tile = f32_tile(context, context.machine.short)
    return tile, (), lambda builder, values: ir.Constant(context.get_value_type(tile), None)


@lowers(simd.tile_zero_row)
def _tile_zero_row(context):
    tile = f32_tile(context, 1)
    return tile, (), lambda builder, values: ir.Constant(context.get_value_type(tile), None)


def _is_rows(kind) -> bool:
    return isinstance(kind, RowsType) and kind.element == F32


def _outer(builder, tile: TileType, acc, rows, p, panel: list):
    """acc + column p of the rows times the vectors of `panel`."""
    for i in range(tile.rows):
        element = builder.load(builder.gep(builder.extract_value(rows, i), [p]))
        whole = splat(builder, element, _vector(tile))
        for j, b in enumerate(panel):
            old = _get(builder, acc, tile, i, j)
            acc = _put(builder, acc, intrinsic(builder, "llvm.fma", b.type, [whole, b, old]), tile, i, j)
    return acc


def _panel(builder, tile: TileType, b, start: int = 0) -> list:
    return [load_vector(builder, b, I64(start + j * tile.lanes), _vector(tile)) for j in range(tile.vectors)]


def _row_part(context, builder, tile: TileType, pointer, n) -> list:
    """The first n elements of a row of the tile, zeros behind."""
    parts = []
    for j in range(tile.vectors):
        start = j * tile.lanes
        part = builder.gep(pointer, [I64(start)])
        parts.append(load_part(context, builder, part, builder.sub(n, I64(start)), _vector(tile)))
    return parts


@lowers(simd.tile_outer)
def _tile_outer(context, acc, rows, p, b):
    return _outer_rule(context, 1, acc, rows, p, b)


@lowers(simd.tile_outer4)
def _tile_outer4(context, acc, rows, p, b):
    return _outer_rule(context, 4, acc, rows, p, b)


def _outer_rule(context, steps: int, acc, rows, p, b):
    tile = acc
    if not _is_tile(context, acc) or not _is_rows(rows) or not is_integer(p) or b != _POINTER:
        return None

    def run(builder, values):
        result, rows_value, column, panel = values
        for step in range(steps):
            at = builder.add(column, I64(step)) if step else column
            vectors = _panel(builder, tile, panel, step * tile.vectors * tile.lanes)
            result = _outer(builder, tile, result, rows_value, at, vectors)
        return result

    return tile, (tile, rows, types.int64, b), run


def _keep_order(builder) -> None:
    """Keep LLVM from loading the panel's vectors of later steps early: they would take registers from the tile."""
    nothing = ir.FunctionType(ir.VoidType(), [])
    builder.call(ir.InlineAsm(nothing, "", "~{memory}", side_effect=True), [])


@lowers(simd.tile_outer_part)
def _tile_outer_part(context, acc, rows, p, b, n):
    tile = acc
    if not _is_tile(context, acc) or not _is_rows(rows) or not is_integer(p) or b != _POINTER or not is_integer(n):
        return None

    def run(builder, values):
        vectors = _row_part(context, builder, tile, values[3], values[4])
        return _outer(builder, tile, values[0], values[1], values[2], vectors)

    return tile, (tile, rows, types.int64, b, types.int64), run


# ---------------------------------------------------------------- epilogues


def _map(builder, tile: TileType, acc, change):
    """change(i, j, vector) for every vector of the tile."""
    for i in range(tile.rows):
        for j in range(tile.vectors):
            acc = _put(builder, acc, change(i, j, _get(builder, acc, tile, i, j)), tile, i, j)
    return acc


@_tile_rule(simd.tile_bias, "tile", "tile", _POINTER, is_integer)
def _tile_bias(context, builder, tile, acc, bias, n):
    row = _row_part(context, builder, tile, bias, n)
    return _map(builder, tile, acc, lambda i, j, v: builder.fadd(v, row[j]))


@_tile_rule(simd.tile_bias_column, "tile", "tile", _POINTER, is_integer)
def _tile_bias_column(context, builder, tile, acc, bias, m):
    last = builder.sub(m, I64(1))
    column = []
    for i in range(tile.rows):
        row = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
        column.append(splat(builder, builder.load(builder.gep(bias, [row])), _vector(tile)))
    return _map(builder, tile, acc, lambda i, j, v: builder.fadd(v, column[i]))


@_tile_rule(simd.tile_scale, "tile", "tile", is_number)
def _tile_scale(context, builder, tile, acc, factor):
    whole = splat(builder, factor, _vector(tile))
    return _map(builder, tile, acc, lambda i, j, v: builder.fmul(v, whole))


@_tile_rule(simd.tile_scale_columns, "tile", "tile", _POINTER, is_integer)
def _tile_scale_columns(context, builder, tile, acc, factors, n):
    row = _row_part(context, builder, tile, factors, n)
    return _map(builder, tile, acc, lambda i, j, v: builder.fmul(v, row[j]))


@_tile_rule(simd.tile_clamp, "tile", "tile", is_number, is_number)
def _tile_clamp(context, builder, tile, acc, low, high):
    bottom, top = splat(builder, low, _vector(tile)), splat(builder, high, _vector(tile))

    def clamp(i, j, v):
        v = builder.select(builder.fcmp_ordered(">", bottom, v), bottom, v)
        return builder.select(builder.fcmp_ordered("<", top, v), top, v)

    return _map(builder, tile, acc, clamp)


# ---------------------------------------------------------------- memory


def _for_rows(builder, tile: TileType, c, ldc, m, n, whole, part) -> None:
    """whole(i, row pointer) for every row of a full tile, else part(i, row pointer) for the rows i < m."""
    full = builder.and_(
        builder.icmp_signed("==", m, I64(tile.rows)), builder.icmp_signed("==", n, I64(tile.vectors * tile.lanes))
    )
    with builder.if_else(full, likely=True) as (complete, partial):
        with complete:
            for i in range(tile.rows):
                whole(i, builder.gep(c, [builder.mul(ldc, I64(i))]))
        with partial:
            for i in range(tile.rows):
                with builder.if_then(builder.icmp_signed("<", I64(i), m)):
                    part(i, builder.gep(c, [builder.mul(ldc, I64(i))]))


@_tile_rule(simd.tile_store, types.none, _POINTER, is_integer, "tile", is_integer, is_integer)
def _tile_store(context, builder, tile, c, ldc, acc, m, n):
    _store(context, builder, tile, c, ldc, acc, m, n)


def _store(context, builder, tile: TileType, c, ldc, acc, m, n) -> None:
    """Rows i < m and columns j < n of the tile to c + i * ldc."""
    kind = _vector(tile)

    def whole(i, row):
        for j in range(tile.vectors):
            store_vector(builder, row, I64(j * tile.lanes), _get(builder, acc, tile, i, j), kind)

    def part(i, row):
        for j in range(tile.vectors):
            start = I64(j * tile.lanes)
            value = _get(builder, acc, tile, i, j)
            store_part(context, builder, builder.gep(row, [start]), value, builder.sub(n, start), kind)

    _for_rows(builder, tile, c, ldc, m, n, whole, part)


def _accumulate(context, builder, tile, acc, c, ldc, m, n, combine):
    """acc[i, j] = combine(acc[i, j], c[i * ldc + j]) inside the valid part."""
    with builder.goto_entry_block():
        slot = builder.alloca(acc.type)
    builder.store(acc, slot)

    def update(i, row_vectors):
        for j, loaded in enumerate(row_vectors):
            place = builder.gep(slot, [I32(0), I32(i * tile.vectors + j)])
            builder.store(combine(builder.load(place), loaded), place)

    def whole(i, row):
        update(i, _panel(builder, tile, row))

    def part(i, row):
        update(i, _row_part(context, builder, tile, row, n))

    _for_rows(builder, tile, c, ldc, m, n, whole, part)
    return builder.load(slot)


@_tile_rule(simd.tile_add, "tile", "tile", _POINTER, is_integer, is_integer, is_integer)
def _tile_add(context, builder, tile, acc, c, ldc, m, n):
    return _accumulate(context, builder, tile, acc, c, ldc, m, n, builder.fadd)


@_tile_rule(simd.tile_axpy, "tile", "tile", is_number, _POINTER, is_integer, is_integer, is_integer)
def _tile_axpy(context, builder, tile, acc, factor, c, ldc, m, n):
    whole = splat(builder, factor, _vector(tile))
    return _accumulate(
        context, builder, tile, acc, c, ldc, m, n, lambda old, new: builder.fadd(old, builder.fmul(whole, new))
    )


# ---------------------------------------------------------------- the tile of integers


def integer_tile_type(context, rows: int) -> TileType:
    """The target's i32 tile of `rows` rows: as wide as the f32 tile, whose lanes are as wide."""
    tile = tile_type(context)
    return TileType(types.int32, rows, tile.vectors, tile.lanes)


def _is_integer_tile(context, kind) -> bool:
    return any(kind == integer_tile_type(context, rows) for rows in (1, context.machine.short, context.machine.mr))


def _zero(context, tile: TileType):
    return tile, (), lambda builder, values: ir.Constant(context.get_value_type(tile), None)


@lowers(simd.tile_zero_i32)
def _tile_zero_i32(context):
    return _zero(context, integer_tile_type(context, context.machine.mr))


@lowers(simd.tile_zero_short_i32)
def _tile_zero_short_i32(context):
    return _zero(context, integer_tile_type(context, context.machine.short))


@lowers(simd.tile_row_i32)
def _tile_row_i32(context):
    return _zero(context, integer_tile_type(context, 1))


@lowers(simd.tile_store_i32)
def _tile_store_i32(context, c, ldc, tile, m, n):
    if c != PointerType(types.int32) or not _is_integer_tile(context, tile):
        return None
    if not all(is_integer(k) for k in (ldc, m, n)):
        return None

    def run(builder, values):
        _store(context, builder, tile, *values)
        return context.get_dummy_value()

    return types.none, (c, types.int64, tile, types.int64, types.int64), run


@lowers(simd.tile_dot_i32)
def _tile_dot_i32(context, tile, rows, p, b):
    fitting = isinstance(rows, RowsType) and rows.element == types.int16 and b == PointerType(types.int8)
    if not _is_integer_tile(context, tile) or not fitting or not is_integer(p):
        return None

    def run(builder, values):
        return _dot(context, builder, tile, *values)

    return tile, (tile, rows, types.int64, b), run


def _dot(context, builder, tile: TileType, acc, rows, p, b):
    """acc + columns p and p + 1 of the rows times two rows of the panel, which lie interleaved at b."""
    pairs = 2 * tile.lanes
    wide = ir.VectorType(ir.IntType(16), pairs)
    panel = []
    for j in range(tile.vectors):
        narrow = load_vector(builder, b, I64(j * pairs), VectorType(types.int8, pairs))
        panel.append(builder.sext(narrow, wide))
    for i in range(tile.rows):
        place = builder.gep(builder.extract_value(rows, i), [p])
        pair = builder.load(builder.bitcast(place, I32.as_pointer()))
        pair.align = 2
        whole = builder.bitcast(splat(builder, pair, _vector(tile)), wide)
        for j, v in enumerate(panel):
            total = builder.add(_get(builder, acc, tile, i, j), _pair_sums(context, builder, whole, v))
            acc = _put(builder, acc, total, tile, i, j)
    return acc


#: the instruction that multiplies lanes of i16 and adds neighbouring products: name and lanes, by target
_PAIR_SUMS = {
    "x86-64-amx": ("llvm.x86.avx512.pmaddw.d.512", 32),
    "x86-64-v4": ("llvm.x86.avx512.pmaddw.d.512", 32),
    "x86-64-v3": ("llvm.x86.avx2.pmadd.wd", 16),
    "x86-64-windows": ("llvm.x86.avx2.pmadd.wd", 16),
    "x86-64-v2": ("llvm.x86.sse2.pmadd.wd", 8),
    "wasm32": ("llvm.wasm.dot", 8),
    "wasm32-relaxed": ("llvm.wasm.dot", 8),
}


def _pair_sums(context, builder, a, b):
    """a[2 k] * b[2 k] + a[2 k + 1] * b[2 k + 1] in i32 lane k, of i16 vectors."""
    count = a.type.count
    name, width = _PAIR_SUMS.get(context.machine.name, ("", 0))
    if not name:
        sums = []
        for start in (0, 1):
            picked = [shuffle(builder, v, v, list(range(start, count, 2))) for v in (a, b)]
            wide = ir.VectorType(I32, count // 2)
            sums.append(builder.mul(*(builder.sext(v, wide) for v in picked)))
        return builder.add(*sums)
    if count > width:
        halves = []
        for start in (0, count // 2):
            lanes = list(range(start, start + count // 2))
            halves.append(_pair_sums(context, builder, shuffle(builder, a, a, lanes), shuffle(builder, b, b, lanes)))
        return shuffle(builder, halves[0], halves[1], list(range(count // 2)))
    return _call(builder, name, ir.VectorType(I32, count // 2), [a, b])


@lowers(simd.tile_add_i32)
def _tile_add_i32(context, tile, c, ldc):
    if not _is_integer_tile(context, tile) or c != PointerType(types.int32) or not is_integer(ldc):
        return None

    def run(builder, values):
        acc, start, step = values
        rows = [_panel(builder, tile, builder.gep(start, [builder.mul(step, I64(i))])) for i in range(tile.rows)]
        return _map(builder, tile, acc, lambda i, j, v: builder.add(v, rows[i][j]))

    return tile, (tile, c, types.int64), run


@lowers(simd.tile_dot4_i32)
def _tile_dot4_i32(context, tile, rows, p, b):
    return _dot_of_bytes(context, tile, rows, b, p)


@lowers(simd.tile_dot8_i32)
def _tile_dot8_i32(context, tile, rows, p, q, b):
    return _dot_of_bytes(context, tile, rows, b, p, q)


def _dot_of_bytes(context, tile, rows, b, *columns):
    fitting = isinstance(rows, RowsType) and rows.element == types.uint8 and b == PointerType(types.int8)
    if not _is_integer_tile(context, tile) or not fitting or not all(is_integer(p) for p in columns):
        return None

    def run(builder, values):
        acc, rows_value, *places, panel = values
        steps, lanes = 4 * tile.lanes, VectorType(types.int8, 4 * tile.lanes)
        starts = [[I64((n * tile.vectors + j) * steps) for n in range(len(places))] for j in range(tile.vectors)]
        right = [[load_vector(builder, panel, start, lanes) for start in column] for column in starts]
        for i in range(tile.rows):
            row = builder.extract_value(rows_value, i)
            left = [_four_bytes(builder, tile, builder.gep(row, [place])) for place in places]
            for j in range(tile.vectors):
                total = _sums_of_fours(context, builder, _get(builder, acc, tile, i, j), left, right[j])
                acc = _put(builder, acc, total, tile, i, j)
        return acc

    return tile, (tile, rows, *(types.int64 for _ in columns), b), run


def _four_bytes(builder, tile: TileType, place):
    """The four bytes at a place, over and over."""
    four = builder.load(builder.bitcast(place, I32.as_pointer()))
    four.align = 1
    return builder.bitcast(splat(builder, four, _vector(tile)), ir.VectorType(ir.IntType(8), 4 * tile.lanes))


def _sums_of_fours(context, builder, old, left: list, right: list):
    """old + the sum over all a in left (u8) and b in right (i8) of a[4 k] b[4 k] + ... + a[4 k + 3] b[4 k + 3]."""
    count = left[0].type.count
    pairs = ir.VectorType(ir.IntType(16), count // 2)
    if context.machine.vector == 64 and count == 64:
        for a, b in zip(left, right):
            old = _call(builder, "llvm.x86.avx512.vpdpbusd.512", old.type, [old, a, b])
        return old
    if context.machine.bytes_at_once and count == 32:
        name = "llvm.x86.avx2.pmadd.ub.sw"
        total = _call(builder, name, pairs, [left[0], right[0]])
        for a, b in zip(left[1:], right[1:]):
            total = builder.add(total, _call(builder, name, pairs, [a, b]))
        ones = ir.Constant(pairs, [1] * (count // 2))
        return builder.add(old, _pair_sums(context, builder, total, ones))
    wide, sums = ir.VectorType(I32, count // 4), []
    for a, b in zip(left, right):
        for start in range(4):
            lanes = list(range(start, count, 4))
            x, w = shuffle(builder, a, a, lanes), shuffle(builder, b, b, lanes)
            sums.append(builder.mul(builder.zext(x, wide), builder.sext(w, wide)))
    for term in sums:
        old = builder.add(old, term)
    return old


def _call(builder, name: str, result, arguments: list):
    """Call an instruction of the target by its name in LLVM."""
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), arguments)


# ---------------------------------------------------------------- matrix registers

I8 = ir.IntType(8)
#: rows and bytes of a row of a matrix register, and the registers: a block of 2 x 2, two of A, two of B
_ROWS, _ROW, _LEFT, _RIGHT = 16, 64, (4, 5), (6, 7)


_SYSTEM_CALL = "={rax},{rax},{rdi},{rsi},~{rcx},~{r11},~{memory}"


def _matrix_rule(function, *expected):
    """Register `emit(builder, values)` for a primitive of the matrix registers, which other machines cannot reach."""

    def register(emit):
        def rule(context, *kinds):
            wanted = [is_integer if w == types.int64 else w for w in expected]
            if len(kinds) != len(wanted) or not all(_fits(k, w) for k, w in zip(kinds, wanted)):
                return None

            def run(builder, values):
                if context.machine.matrix:
                    emit(builder, *values)
                return context.get_dummy_value()

            return types.none, expected, run

        return lowers(function)(rule)

    return register


def _command(builder, name: str, *arguments) -> None:
    _call(builder, f"llvm.x86.{name}", ir.VoidType(), list(arguments))


def _move(builder, name: str, register: int, place, offset: int, step) -> None:
    """Move a register from or to `offset` bytes behind a place, its rows `step` bytes apart."""
    byte = builder.gep(builder.bitcast(place, I8.as_pointer()), [I64(offset)])
    _command(builder, name, I8(register), byte, I64(step) if isinstance(step, int) else step)


@_matrix_rule(simd.matrix_open)
def _matrix_open(builder):
    # Linux gives their state to a process that asks, which a compiled model does here: a tenth of a microsecond
    ask = ir.InlineAsm(ir.FunctionType(I64, [I64] * 3), "syscall", _SYSTEM_CALL, side_effect=True)
    builder.call(ask, [I64(number) for number in TILE_DATA])
    # palette 1; the bytes of a row from 16 on, the rows from 48 on
    form = [1, *[0] * 15, *[_ROW, 0] * 8, *[0] * 16, *[_ROWS] * 8, *[0] * 8]
    words = [int.from_bytes(bytes(form[i : i + 8]), "little") for i in range(0, 64, 8)]
    with builder.goto_entry_block():
        place = builder.alloca(I64.as_pointer().pointee, size=8)
    for i, word in enumerate(words):
        builder.store(I64(word), builder.gep(place, [I64(i)]))
    _command(builder, "ldtilecfg", builder.bitcast(place, I8.as_pointer()))


@_matrix_rule(simd.matrix_close)
def _matrix_close(builder):
    _command(builder, "tilerelease")


@_matrix_rule(simd.matrix_zero)
def _matrix_zero(builder):
    for register in range(4):
        _command(builder, "tilezero", I8(register))


def _move_block(builder, name: str, place, step) -> None:
    """Move the block from or to rows that lie `step` elements apart."""
    for register in range(4):
        start = builder.gep(place, [builder.mul(step, I64(register // 2 * _ROWS))])
        _move(builder, name, register, start, register % 2 * _ROW, builder.mul(step, I64(4)))


@_matrix_rule(simd.matrix_load, _POINTER, types.int64)
def _matrix_load(builder, place, step):
    _move_block(builder, "tileloadd64", place, step)


@_matrix_rule(simd.matrix_store, _POINTER)
def _matrix_store(builder, place):
    _move_block(builder, "tilestored64", place, I64(simd.SIDE))


@_matrix_rule(simd.matrix_product, PointerType(types.uint32), PointerType(types.uint32), types.int64)
def _matrix_product(builder, a, b, turn):
    behind = builder.append_basic_block()
    choice = builder.switch(turn, behind)
    for shape, (left, right) in enumerate(((_LEFT, _RIGHT), (_LEFT[:1], _RIGHT), (_LEFT, _RIGHT[:1]))):
        before: tuple[int | None, int | None] = (None, None)
        for case, pair in enumerate(simd.MATRIX_PRODUCTS, 6 * shape):
            block = builder.append_basic_block()
            choice.add_case(I64(case), block)
            builder.position_at_end(block)
            for place, part, old, registers in zip((a, b), pair, before, (left, right)):
                for i, register in enumerate(registers if part != old else ()):
                    _move(builder, "tileloadd64", register, place, 4 * simd.THIRD * part + i * _ROWS * _ROW, _ROW)
            for i, row in enumerate(left):
                for j, column in enumerate(right):
                    _command(builder, "tdpbf16ps", I8(2 * i + j), I8(row), I8(column))
            builder.branch(behind)
            before = pair
    builder.position_at_end(behind)


@_matrix_rule(simd.matrix_bytes, PointerType(types.uint8), types.int64, PointerType(types.int8))
def _matrix_bytes(builder, a, lda, b):
    for i, register in enumerate(_LEFT):
        _move(builder, "tileloadd64", register, builder.gep(a, [builder.mul(lda, I64(i * _ROWS))]), 0, lda)
    for j, register in enumerate(_RIGHT):
        _move(builder, "tileloadd64", register, b, j * _ROW, 2 * _ROW)
    for i, left in enumerate(_LEFT):
        for j, right in enumerate(_RIGHT):
            _command(builder, "tdpbusd", I8(2 * i + j), I8(left), I8(right))
