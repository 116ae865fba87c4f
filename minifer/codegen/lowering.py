"""What each primitive of kernels/simd.py becomes in LLVM IR.

A rule `rule(context, *argument types)` gives `(result type, argument types, emit)`, or None if it does not take such
arguments; Numba converts the arguments to the given types, and `emit(builder, values)` returns the result's value.
`@lowers(simd.vfma)` registers it. A rule with `needs="half"` is used only on targets that have that instruction;
elsewhere the function's Python body is compiled. The register tile's rules are in lowering_tile.py.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from llvmlite import ir
from numba.core import types

from minifer.codegen.numba_bridge import PointerType, VectorType, llvm_number, llvm_vector, register_operator
from minifer.kernels import simd

I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))
LOWERINGS: dict[Callable, Callable] = {}


def lowers(*functions: Callable, needs: str = "") -> Callable:
    """Register a lowering rule for primitives of simd.py."""

    def register(rule):
        rule.needs = needs
        for function in functions:
            LOWERINGS[function] = rule
        return rule

    return register


# ---------------------------------------------------------------- building blocks


def is_float(kind) -> bool:
    return isinstance(kind, types.Float)


def is_number(kind) -> bool:
    return isinstance(types.unliteral(kind), types.Float | types.Integer | types.Boolean)


def is_integer(kind) -> bool:
    return isinstance(types.unliteral(kind), types.Integer | types.Boolean)


def natural(context, element) -> VectorType:
    return VectorType(element, 8 * context.machine.vector // element.bitwidth)


def element_of(kind):
    """The element type of a pointer, a vector, a scalar type (f32 in a body) or a number; None for others."""
    if isinstance(kind, PointerType | VectorType):
        return kind.element
    if isinstance(kind, types.NumberClass):
        return kind.instance_type
    return types.unliteral(kind) if is_number(kind) else None


def constant_of(kind) -> int | None:
    """The value of an integer known when compiling."""
    return kind.literal_value if isinstance(kind, types.IntegerLiteral) else None


def splat(builder, value, kind: VectorType):
    """The number in every lane."""
    shape = llvm_vector(kind.element, kind.lanes)
    if isinstance(value, ir.Constant):
        return ir.Constant(shape, [value] * kind.lanes)
    single = builder.insert_element(ir.Constant(shape, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(single, single, ir.Constant(ir.VectorType(I32, kind.lanes), [0] * kind.lanes))


def shuffle(builder, a, b, lanes: list[int]):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def converted(context, builder, value, source, target):
    """A value brought to the vector or number type `target`."""
    if isinstance(source, VectorType):
        return value
    if isinstance(target, VectorType):
        return splat(builder, context.number(builder, value, source, target.element), target)
    return context.number(builder, value, source, target)


def intrinsic(builder, name: str, result: ir.Type, arguments: list):
    """Call an LLVM intrinsic whose name ends with the type: llvm.sqrt -> llvm.sqrt.v8f32."""
    suffix = mangled(arguments[0].type)
    function_type = ir.FunctionType(result, [a.type for a in arguments])
    full = f"{name}.{suffix}"
    function = builder.module.globals.get(full) or ir.Function(builder.module, function_type, full)
    return builder.call(function, arguments)


def mangled(kind: ir.Type) -> str:
    """LLVM's name of a type in an overloaded intrinsic."""
    if isinstance(kind, ir.VectorType):
        return f"v{kind.count}{mangled(kind.element)}"
    if isinstance(kind, ir.IntType):
        return f"i{kind.width}"
    return {ir.HalfType: "f16", ir.FloatType: "f32", ir.DoubleType: "f64"}[type(kind)]


def unify(*kinds):
    """The common type of an operation's arguments: the first vector, else f32 if one is, else the first number."""
    vectors = [k for k in kinds if isinstance(k, VectorType)]
    if not all(isinstance(k, VectorType) or is_number(k) for k in kinds) or any(v != vectors[0] for v in vectors):
        return None
    if vectors:
        return vectors[0]
    return types.float32 if types.float32 in kinds else types.unliteral(kinds[0])


def lane_wise(*functions: Callable, mask: bool = False, floats_only: bool = False) -> Callable:
    """Register `emit(builder, element type, values)` for vectors and numbers of one common type."""

    def register(emit):
        def rule(context, *kinds):
            common = unify(*kinds)
            element = common and element_of(common)
            if common is None or isinstance(element, types.Boolean) or (floats_only and not is_float(element)):
                return None
            result = _mask_of(common) if mask else common

            def run(builder, values):
                return emit(
                    builder, element, *(converted(context, builder, v, k, common) for v, k in zip(values, kinds))
                )

            return result, kinds, run

        return lowers(*functions)(rule)

    return register


def _mask_of(kind):
    return VectorType(types.boolean, kind.lanes) if isinstance(kind, VectorType) else types.boolean


# ---------------------------------------------------------------- pointers and numbers


def address(context, builder, pointer, index):
    return builder.gep(pointer, [index])


@lowers(simd.lanes)
def _lanes(context, t):
    element = element_of(t)
    if element is None:
        return None
    count = natural(context, element).lanes
    return types.literal(count), (t,), lambda builder, values: I64(count)


@lowers(simd.as_element)
def _as_element(context, p, x):
    element = element_of(p)
    if element is None or not is_number(x):
        return None
    return element, (p, x), lambda builder, values: context.number(builder, values[1], x, element)


@lowers(simd.like)
def _like(context, v, x):
    if not (is_number(v) or isinstance(v, VectorType)) or not is_number(x):
        return None
    target = types.unliteral(v)
    return target, (v, x), lambda builder, values: converted(context, builder, values[1], x, target)


@lowers(simd.cast)
def _cast(context, p, element):
    if not isinstance(p, PointerType) or not isinstance(element, types.NumberClass):
        return None
    new = PointerType(element.instance_type)
    return new, (p, element), lambda builder, values: builder.bitcast(values[0], context.get_value_type(new))


@lowers(simd.as_ptr)
def _as_ptr(context, value, element):
    if not is_integer(value) or not isinstance(element, types.NumberClass):
        return None
    new = PointerType(element.instance_type)
    emit = lambda builder, values: builder.inttoptr(values[0], context.get_value_type(new))  # noqa: E731
    return new, (types.int64, element), emit


@lowers(simd.address_of)
def _address_of(context, p):
    return types.int64, (p,), lambda builder, values: builder.ptrtoint(values[0], I64)


# ---------------------------------------------------------------- loads and stores


def vector_address(builder, pointer, index, kind: VectorType):
    return builder.bitcast(builder.gep(pointer, [index]), llvm_vector(kind.element, kind.lanes).as_pointer())


def load_vector(builder, pointer, index, kind: VectorType):
    loaded = builder.load(vector_address(builder, pointer, index, kind))
    loaded.align = kind.element.bitwidth // 8
    return loaded


def store_vector(builder, pointer, index, value, kind: VectorType):
    stored = builder.store(value, vector_address(builder, pointer, index, kind))
    stored.align = kind.element.bitwidth // 8


@lowers(simd.vload)
def _vload(context, p, i):
    if not isinstance(p, PointerType) or not is_integer(i):
        return None
    kind = natural(context, p.element)
    return kind, (p, types.int64), lambda builder, values: load_vector(builder, values[0], values[1], kind)


@lowers(simd.vload_n)
def _vload_n(context, p, i, n):
    count = constant_of(n)
    if not isinstance(p, PointerType) or not is_integer(i) or count is None:
        return None
    kind = VectorType(p.element, count)
    return kind, (p, types.int64, n), lambda builder, values: load_vector(builder, values[0], values[1], kind)


@lowers(simd.vstore)
def _vstore(context, p, i, v):
    if not isinstance(p, PointerType) or not isinstance(v, VectorType) or p.element != v.element or not is_integer(i):
        return None

    def emit(builder, values):
        store_vector(builder, values[0], values[1], values[2], v)
        return context.get_dummy_value()

    return types.none, (p, types.int64, v), emit


@lowers(simd.vload_part)
def _vload_part(context, p, i, n):
    if not isinstance(p, PointerType) or not is_integer(i) or not is_integer(n):
        return None
    kind = natural(context, p.element)

    def emit(builder, values):
        return load_part(context, builder, builder.gep(values[0], [values[1]]), values[2], kind)

    return kind, (p, types.int64, types.int64), emit


@lowers(simd.vstore_part)
def _vstore_part(context, p, i, v, n):
    if not isinstance(p, PointerType) or not isinstance(v, VectorType) or p.element != v.element:
        return None
    if not is_integer(i) or not is_integer(n):
        return None

    def emit(builder, values):
        store_part(context, builder, builder.gep(values[0], [values[1]]), values[2], values[3], v)
        return context.get_dummy_value()

    return types.none, (p, types.int64, v, types.int64), emit


def _has_masked(context, kind: VectorType) -> bool:
    return context.machine.masked and (kind.element.bitwidth >= 32 or context.machine.vector == 64)


def _mask_below(builder, n, kind: VectorType):
    """Lane < n, compared in integers of the element's width."""
    width = kind.element.bitwidth
    integer = ir.IntType(width)
    low = builder.select(builder.icmp_signed("<", n, I64(0)), I64(0), n)
    clamped = builder.select(builder.icmp_signed(">", low, I64(kind.lanes)), I64(kind.lanes), low)
    count = clamped if width == 64 else builder.trunc(clamped, integer)
    whole = splat(builder, count, VectorType(types.Integer.from_bitwidth(width), kind.lanes))
    lanes = ir.Constant(ir.VectorType(integer, kind.lanes), list(range(kind.lanes)))
    return builder.icmp_signed("<", lanes, whole)


def load_part(context, builder, pointer, n, kind: VectorType):
    """The first n lanes at the pointer, zeros behind."""
    shape = llvm_vector(kind.element, kind.lanes)
    if not _has_masked(context, kind):
        function = _part_function(builder.module, kind, store=False)
        slot = _entry_alloca(builder, shape)
        builder.store(ir.Constant(shape, None), slot)
        builder.call(function, [builder.bitcast(slot, pointer.type), pointer, n])
        return builder.load(slot)
    mask = _mask_below(builder, n, kind)
    wide = builder.bitcast(pointer, shape.as_pointer())
    name = f"llvm.masked.load.{mangled(shape)}.p0"
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(shape, [shape.as_pointer(), I32, mask.type, shape]), name
    )
    return builder.call(function, [wide, I32(kind.element.bitwidth // 8), mask, ir.Constant(shape, None)])


def store_part(context, builder, pointer, value, n, kind: VectorType):
    """Store the first n lanes."""
    shape = value.type
    if not _has_masked(context, kind):
        function = _part_function(builder.module, kind, store=True)
        slot = _entry_alloca(builder, shape)
        builder.store(value, slot)
        builder.call(function, [pointer, builder.bitcast(slot, pointer.type), n])
        return
    # A masked store costs many times a plain one on some machines, and most parts are whole.
    with builder.if_else(builder.icmp_signed(">=", n, I64(kind.lanes)), likely=True) as (full, rest):
        with full:
            store_vector(builder, pointer, I64(0), value, kind)
        with rest:
            mask = _mask_below(builder, n, kind)
            wide = builder.bitcast(pointer, shape.as_pointer())
            name = f"llvm.masked.store.{mangled(shape)}.p0"
            function = builder.module.globals.get(name) or ir.Function(
                builder.module, ir.FunctionType(ir.VoidType(), [shape, shape.as_pointer(), I32, mask.type]), name
            )
            builder.call(function, [value, wide, I32(kind.element.bitwidth // 8), mask])


def _entry_alloca(builder, shape):
    with builder.goto_entry_block():
        return builder.alloca(shape)


def _part_function(module, kind: VectorType, store: bool):
    """A small loop that copies min(n, lanes) elements: where masked moves are no instructions. One per element type."""
    pointer = llvm_number(kind.element).as_pointer()
    name = f"minifer.copy.{mangled(llvm_number(kind.element))}.{kind.lanes}"
    function = module.globals.get(name)
    if function is not None:
        return function
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [pointer, pointer, I64]), name)
    function.linkage = "linkonce_odr"
    function.attributes.add("noinline")
    target, source, n = function.args
    entry, loop, done = (function.append_basic_block(b) for b in ("entry", "loop", "done"))
    builder = ir.IRBuilder(entry)
    count = builder.select(builder.icmp_signed(">", n, I64(kind.lanes)), I64(kind.lanes), n)
    builder.cbranch(builder.icmp_signed(">", count, I64(0)), loop, done)
    builder.position_at_end(loop)
    index = builder.phi(I64)
    builder.store(builder.load(builder.gep(source, [index])), builder.gep(target, [index]))
    following = builder.add(index, I64(1))
    index.add_incoming(I64(0), entry)
    index.add_incoming(following, loop)
    again = builder.cbranch(builder.icmp_signed("<", following, count), loop, done)
    unroll = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    width = module.add_metadata([ir.MetaDataString(module, "llvm.loop.vectorize.width"), I32(1)])
    again.set_metadata("llvm.loop", module.add_metadata([unroll, width]))
    builder.position_at_end(done)
    builder.ret_void()
    return function


# ---------------------------------------------------------------- making and taking apart vectors


@lowers(simd.vsplat)
def _vsplat(context, t, x):
    element = element_of(t)
    if element is None or not is_number(x):
        return None
    kind = natural(context, element)
    return kind, (t, x), lambda builder, values: converted(context, builder, values[1], x, kind)


@lowers(simd.viota)
def _viota(context, t):
    element = element_of(t)
    if element is None:
        return None
    kind = natural(context, element)
    return kind, (t,), lambda builder, values: ir.Constant(llvm_vector(element, kind.lanes), list(range(kind.lanes)))


@lowers(simd.vget)
def _vget(context, v, i):
    if not isinstance(v, VectorType) or not is_integer(i):
        return None
    return v.element, (v, types.int64), lambda builder, values: builder.extract_element(*values)


@lowers(simd.vset)
def _vset(context, v, i, x):
    if not isinstance(v, VectorType) or not is_integer(i) or not is_number(x):
        return None

    def emit(builder, values):
        return builder.insert_element(values[0], context.number(builder, values[2], x, v.element), values[1])

    return v, (v, types.int64, x), emit


@lowers(simd.vgather)
def _vgather(context, p, indices):
    if not isinstance(p, PointerType) or not isinstance(indices, VectorType) or is_float(indices.element):
        return None
    kind = VectorType(p.element, indices.lanes)

    def emit(builder, values):
        result = ir.Constant(llvm_vector(kind.element, kind.lanes), ir.Undefined)
        for lane in range(kind.lanes):
            index = builder.extract_element(values[1], I32(lane))
            wide = context.number(builder, index, indices.element, types.int64)
            result = builder.insert_element(result, builder.load(builder.gep(values[0], [wide])), I32(lane))
        return result

    return kind, (p, indices), emit


def _shuffling(function: Callable, operands: int, lanes_of: Callable[[int], list[int]]) -> None:
    """Register a primitive that picks lanes of one or two vectors of n lanes."""

    def rule(context, *kinds):
        first = kinds[0]
        if len(kinds) != operands or not isinstance(first, VectorType) or any(k != first for k in kinds):
            return None
        picked = lanes_of(first.lanes)

        def emit(builder, values):
            return shuffle(builder, values[0], values[-1], picked)

        return VectorType(first.element, len(picked)), kinds, emit

    lowers(function)(rule)


def _zipped(n: int) -> list[int]:
    return [lane for k in range(n) for lane in (k, n + k)]


_shuffling(simd.vzip_low, 2, lambda n: _zipped(n)[:n])
_shuffling(simd.vzip_high, 2, lambda n: _zipped(n)[n:])
_shuffling(simd.veven, 2, lambda n: list(range(0, 2 * n, 2)))
_shuffling(simd.vodd, 2, lambda n: list(range(1, 2 * n, 2)))
_shuffling(simd.vzip_odd, 2, lambda n: [lane for i in range(1, n, 2) for lane in (i, n + i)])
_shuffling(simd.vjoin, 2, lambda n: list(range(2 * n)))
_shuffling(simd.vlow, 1, lambda n: list(range(n // 2)))
_shuffling(simd.vhigh, 1, lambda n: list(range(n // 2, n)))

# ---------------------------------------------------------------- arithmetic


@lane_wise(simd.vfma)
def _vfma(builder, element, a, b, c):
    if is_float(element):
        return intrinsic(builder, "llvm.fma", a.type, [a, b, c])
    return builder.add(builder.mul(a, b), c)


def _compare(builder, element, sign: str, a, b):
    if is_float(element):
        return builder.fcmp_unordered(sign, a, b) if sign == "!=" else builder.fcmp_ordered(sign, a, b)
    return (builder.icmp_signed if element.signed else builder.icmp_unsigned)(sign, a, b)


def _extreme(builder, element, sign: str, a, b):
    """a if a `sign` b else b; NaN if either is NaN."""
    picked = builder.select(_compare(builder, element, sign, a, b), a, b)
    if is_float(element):
        picked = builder.select(builder.fcmp_unordered("uno", a, a), a, picked)
    return picked


@lane_wise(simd.vmax)
def _vmax(builder, element, a, b):
    return _extreme(builder, element, ">", a, b)


@lane_wise(simd.vmin)
def _vmin(builder, element, a, b):
    return _extreme(builder, element, "<", a, b)


@lane_wise(simd.vmax_quick)
def _vmax_quick(builder, element, a, b):
    return builder.select(_compare(builder, element, ">", a, b), a, b)


@lane_wise(simd.vmin_quick)
def _vmin_quick(builder, element, a, b):
    return builder.select(_compare(builder, element, "<", a, b), a, b)


@lane_wise(simd.vabs)
def _vabs(builder, element, a):
    if is_float(element):
        return intrinsic(builder, "llvm.fabs", a.type, [a])
    if not element.signed:
        return a
    zero = ir.Constant(a.type, None if isinstance(a.type, ir.VectorType) else 0)
    return builder.select(builder.icmp_signed("<", a, zero), builder.sub(zero, a), a)


def _float_intrinsic(function: Callable, name: str) -> None:
    @lane_wise(function, floats_only=True)
    def emit(builder, element, *values):
        return intrinsic(builder, name, values[0].type, list(values))


_float_intrinsic(simd.vsqrt, "llvm.sqrt")
_float_intrinsic(simd.vfloor, "llvm.floor")
_float_intrinsic(simd.vceil, "llvm.ceil")
_float_intrinsic(simd.vtrunc, "llvm.trunc")
_float_intrinsic(simd.vround, "llvm.rint")
_float_intrinsic(simd.vcopysign, "llvm.copysign")


@lowers(simd.vselect)
def _vselect(context, mask, a, b):
    common = unify(a, b)
    if common is None:
        return None
    scalar = isinstance(types.unliteral(mask), types.Boolean)
    fitting = isinstance(mask, VectorType) and isinstance(common, VectorType) and mask.lanes == common.lanes
    if not scalar and not (fitting and isinstance(mask.element, types.Boolean)):
        return None

    def emit(builder, values):
        x, y = (converted(context, builder, v, k, common) for v, k in zip(values[1:], (a, b)))
        return builder.select(values[0], x, y)

    return common, (types.unliteral(mask), a, b), emit


def _mask_reduction(function: Callable, all_lanes: bool) -> None:
    def rule(context, mask):
        if isinstance(types.unliteral(mask), types.Boolean):
            return types.boolean, (types.boolean,), lambda builder, values: values[0]
        if not isinstance(mask, VectorType) or not isinstance(mask.element, types.Boolean):
            return None
        integer = ir.IntType(mask.lanes)

        def emit(builder, values):
            bits = builder.bitcast(values[0], integer)
            if all_lanes:
                return builder.icmp_unsigned("==", bits, integer(-1))
            return builder.icmp_unsigned("!=", bits, integer(0))

        return types.boolean, (mask,), emit

    lowers(function)(rule)


_mask_reduction(simd.vany, False)
_mask_reduction(simd.vall, True)


def _horizontal(function: Callable, combine: Callable) -> None:
    def rule(context, v):
        if not isinstance(v, VectorType) or isinstance(v.element, types.Boolean):
            return None

        def emit(builder, values):
            value, n = values[0], v.lanes
            while n > 1:
                n //= 2
                low = shuffle(builder, value, value, list(range(n)))
                high = shuffle(builder, value, value, list(range(n, 2 * n)))
                value = combine(builder, v.element, low, high)
            return builder.extract_element(value, I32(0))

        return v.element, (v,), emit

    lowers(function)(rule)


_horizontal(simd.hsum, lambda b, e, x, y: b.fadd(x, y) if is_float(e) else b.add(x, y))
_horizontal(simd.hmax, lambda b, e, x, y: _extreme(b, e, ">", x, y))
_horizontal(simd.hmin, lambda b, e, x, y: _extreme(b, e, "<", x, y))

# ---------------------------------------------------------------- conversions


@lowers(simd.vconvert)
def _vconvert(context, v, element):
    if not isinstance(element, types.NumberClass) or not (isinstance(v, VectorType) or is_number(v)):
        return None
    source, target = element_of(v), element.instance_type
    result = VectorType(target, v.lanes) if isinstance(v, VectorType) else target
    if isinstance(source, types.Boolean):
        return None

    def emit(builder, values):
        shape = llvm_vector(target, v.lanes) if isinstance(v, VectorType) else llvm_number(target)
        return convert(context, builder, values[0], source, target, shape)

    return result, (types.unliteral(v), element), emit


def convert(context, builder, value, source, target, shape: ir.Type):
    """Lanes of one number type as another: saturating from float to integer, wrapping between integers."""
    if is_float(source) and is_float(target):
        if source.bitwidth == target.bitwidth:
            return value
        return (builder.fpext if source.bitwidth < target.bitwidth else builder.fptrunc)(value, shape)
    if is_float(source):
        if isinstance(shape, ir.VectorType) and context.machine.triple.startswith("x86"):
            return _saturated(builder, value, target, shape)
        name = f"llvm.fpto{'s' if target.signed else 'u'}i.sat.{mangled(shape)}"
        return intrinsic(builder, name, shape, [value])
    if is_float(target):
        return (builder.sitofp if source.signed else builder.uitofp)(value, shape)
    if source.bitwidth == target.bitwidth:
        return value
    if source.bitwidth > target.bitwidth:
        return builder.trunc(value, shape)
    return (builder.sext if source.signed else builder.zext)(value, shape)


def _saturated(builder, value, target, shape: ir.VectorType):
    """Floats as integers where no instruction saturates: LLVM would convert lane by lane."""
    count, kind = shape.count, value.type.element
    least, most = (0, (1 << target.bitwidth) - 1)
    if target.signed:
        least, most = -(1 << (target.bitwidth - 1)), (1 << (target.bitwidth - 1)) - 1
    digits = 24 if isinstance(kind, ir.FloatType) else 53
    exact = target.bitwidth < digits  # whether least - 1 is a number of the source's type
    bottom, top = (ir.Constant(value.type, [float(x)] * count) for x in (least - exact, most + 1))
    above = builder.fcmp_ordered(">" if exact else ">=", value, bottom)
    safe = builder.select(
        builder.and_(above, builder.fcmp_ordered("<", value, top)), value, ir.Constant(value.type, None)
    )
    result = (builder.fptosi if target.signed else builder.fptoui)(safe, shape)
    result = builder.select(builder.fcmp_ordered(">=", value, top), ir.Constant(shape, [most] * count), result)
    if least == 0:  # as what is no number
        return result
    below = builder.fcmp_ordered("<=" if exact else "<", value, bottom)
    return builder.select(below, ir.Constant(shape, [least] * count), result)


@lowers(simd.bitcast)
def _bitcast(context, v, element):
    source = element_of(v)
    if not isinstance(element, types.NumberClass) or isinstance(v, PointerType) or source is None:
        return None
    target = element.instance_type
    plain = types.unliteral(v)
    if not isinstance(v, VectorType):
        if is_integer(plain) and plain.bitwidth > target.bitwidth:  # a number computed in 64 bits
            plain = types.Integer.from_bitwidth(target.bitwidth, plain.signed)
        if plain.bitwidth != target.bitwidth:
            return None
        return target, (plain, element), lambda builder, values: builder.bitcast(values[0], llvm_number(target))
    bits = source.bitwidth * v.lanes
    kind = VectorType(target, bits // target.bitwidth)
    shape = llvm_vector(target, kind.lanes)
    return kind, (v, element), lambda builder, values: builder.bitcast(values[0], shape)


@lowers(simd.f16_to_f32, needs="half")
def _f16_to_f32(context, h):
    if not isinstance(h, VectorType) or h.element.bitwidth != 16:
        return None
    half, single = ir.VectorType(ir.HalfType(), h.lanes), llvm_vector(types.float32, h.lanes)
    emit = lambda builder, values: builder.fpext(builder.bitcast(values[0], half), single)  # noqa: E731
    return VectorType(types.float32, h.lanes), (h,), emit


@lowers(simd.f32_to_f16, needs="half")
def _f32_to_f16(context, v):
    if not isinstance(v, VectorType) or v.element != types.float32:
        return None
    half, bits = ir.VectorType(ir.HalfType(), v.lanes), llvm_vector(types.uint16, v.lanes)
    emit = lambda builder, values: builder.bitcast(builder.fptrunc(values[0], half), bits)  # noqa: E731
    return VectorType(types.uint16, v.lanes), (v,), emit


# ---------------------------------------------------------------- Python operators

_VECTOR_PAIRS = [(VectorType, VectorType), (VectorType, types.Number), (types.Number, VectorType)]


def _binary(operation: Callable, float_name: str | None, signed_name: str | None, unsigned_name: str | None = None):
    """Register an operator on vectors; the names are llvmlite's instructions (None: not for such elements)."""

    @register_operator(operation, *_VECTOR_PAIRS)
    def rule(context, a, b):
        common = unify(a, b)
        if not isinstance(common, VectorType):
            return None
        element = common.element
        if isinstance(element, types.Boolean):
            name = signed_name if signed_name in ("and_", "or_", "xor") else None
        elif is_float(element):
            name = float_name
        else:
            name = signed_name if element.signed or unsigned_name is None else unsigned_name
        if name is None:
            return None

        def emit(builder, values):
            x, y = (converted(context, builder, v, k, common) for v, k in zip(values, (a, b)))
            return getattr(builder, name)(x, y)

        return common, (a, b), emit


_binary(operator.add, "fadd", "add")
_binary(operator.sub, "fsub", "sub")
_binary(operator.mul, "fmul", "mul")
_binary(operator.truediv, "fdiv", None)
_binary(operator.and_, None, "and_")
_binary(operator.or_, None, "or_")
_binary(operator.xor, None, "xor")
_binary(operator.lshift, None, "shl")
_binary(operator.rshift, None, "ashr", "lshr")


def _comparison(operation: Callable, sign: str) -> None:
    @register_operator(operation, *_VECTOR_PAIRS)
    def rule(context, a, b):
        common = unify(a, b)
        if not isinstance(common, VectorType) or isinstance(common.element, types.Boolean):
            return None

        def emit(builder, values):
            x, y = (converted(context, builder, v, k, common) for v, k in zip(values, (a, b)))
            return _compare(builder, common.element, sign, x, y)

        return _mask_of(common), (a, b), emit


for _operation, _sign in (
    (operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="),
    (operator.eq, "=="), (operator.ne, "!="),
):  # fmt: skip
    _comparison(_operation, _sign)


@register_operator(operator.neg, (VectorType,))
def _negate(context, v):
    if not isinstance(v, VectorType) or isinstance(v.element, types.Boolean):
        return None
    return v, (v,), lambda builder, values: (builder.fneg if is_float(v.element) else builder.neg)(values[0])


@register_operator(operator.invert, (VectorType,))
def _invert(context, v):
    if not isinstance(v, VectorType) or is_float(v.element):
        return None
    return v, (v,), lambda builder, values: builder.not_(values[0])


@register_operator(operator.add, (PointerType, types.Integer))
def _advance(context, p, n):
    if not isinstance(p, PointerType) or not is_integer(n):
        return None
    return p, (p, types.int64), lambda builder, values: builder.gep(values[0], [values[1]])


@register_operator(operator.sub, (PointerType, types.Integer))
def _retreat(context, p, n):
    if not isinstance(p, PointerType) or not is_integer(n):
        return None
    return p, (p, types.int64), lambda builder, values: builder.gep(values[0], [builder.neg(values[1])])


@register_operator(operator.getitem, (PointerType, types.Integer), (VectorType, types.Integer))
def _getitem(context, p, i):
    if not is_integer(i):
        return None
    if isinstance(p, VectorType):
        return p.element, (p, types.int64), lambda builder, values: builder.extract_element(*values)
    if not isinstance(p, PointerType):
        return None
    return p.element, (p, types.int64), lambda builder, values: builder.load(builder.gep(values[0], [values[1]]))


@register_operator(
    operator.setitem, (PointerType, types.Integer, types.Number), (PointerType, types.Integer, types.Boolean)
)
def _setitem(context, p, i, x):
    if not isinstance(p, PointerType) or not is_integer(i) or not is_number(x):
        return None

    def emit(builder, values):
        builder.store(context.number(builder, values[2], x, p.element), builder.gep(values[0], [values[1]]))
        return context.get_dummy_value()

    return types.none, (p, types.int64, x), emit


# ---------------------------------------------------------------- Python built-ins on numbers


def _number_extreme(function: Callable, sign: str) -> None:
    def rule(context, *kinds):
        if len(kinds) < 2 or not all(is_number(k) for k in kinds):
            return None
        plain = [types.unliteral(k) for k in kinds]
        common = context.typing_context.unify_types(*plain)

        def emit(builder, values):
            numbers = [context.number(builder, v, k, common) for v, k in zip(values, plain)]
            best = numbers[0]
            for number in numbers[1:]:  # as Python: the later one only if it is strictly better
                best = builder.select(_compare(builder, common, sign, number, best), number, best)
            return best

        return common, kinds, emit

    lowers(function)(rule)


_number_extreme(min, "<")
_number_extreme(max, ">")


@lowers(abs)
def _abs(context, x):
    kind = types.unliteral(x)
    if not is_number(kind):
        return None
    return kind, (x,), lambda builder, values: _vabs_number(builder, kind, values[0])


def _vabs_number(builder, kind, value):
    if is_float(kind):
        return intrinsic(builder, "llvm.fabs", value.type, [value])
    zero = value.type(0)
    return builder.select(builder.icmp_signed("<", value, zero), builder.sub(zero, value), value)


# ---------------------------------------------------------------- threads, calls, hints


@lowers(simd.prefetch)
def _prefetch(context, p, i):
    if not isinstance(p, PointerType) or not is_integer(i):
        return None

    def emit(builder, values):
        byte = builder.bitcast(builder.gep(values[0], [values[1]]), I8.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
        builder.call(function, [byte, I32(0), I32(3), I32(1)])
        return context.get_dummy_value()

    return types.none, (p, types.int64), emit


def _is_i64_pointer(p) -> bool:
    return isinstance(p, PointerType) and p.element == types.int64


@lowers(simd.atomic_load)
def _atomic_load(context, p, i):
    if not _is_i64_pointer(p):
        return None
    emit = lambda builder, v: builder.load_atomic(builder.gep(v[0], [v[1]]), "acquire", 8)  # noqa: E731
    return types.int64, (p, types.int64), emit


@lowers(simd.atomic_store)
def _atomic_store(context, p, i, v):
    if not _is_i64_pointer(p):
        return None

    def emit(builder, values):
        builder.store_atomic(values[2], builder.gep(values[0], [values[1]]), "seq_cst", 8)
        return context.get_dummy_value()

    return types.none, (p, types.int64, types.int64), emit


@lowers(simd.atomic_add)
def _atomic_add(context, p, i, v):
    if not _is_i64_pointer(p):
        return None
    emit = lambda builder, v: builder.atomic_rmw("add", builder.gep(v[0], [v[1]]), v[2], "seq_cst")  # noqa: E731
    return types.int64, (p, types.int64, types.int64), emit


@lowers(simd.atomic_cas)
def _atomic_cas(context, p, i, expected, new):
    if not _is_i64_pointer(p):
        return None

    def emit(builder, v):
        pair = builder.cmpxchg(builder.gep(v[0], [v[1]]), v[2], v[3], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)

    return types.int64, (p, types.int64, types.int64, types.int64), emit


@lowers(simd.pause)
def _pause(context):
    def emit(builder, values):
        name, arguments = {
            "x86_64": ("llvm.x86.sse2.pause", []),
            "aarch64": ("llvm.aarch64.hint", [I32(1)]),
        }.get(context.machine.triple.split("-")[0], ("", []))
        if name:
            kind = ir.FunctionType(ir.VoidType(), [a.type for a in arguments])
            builder.call(builder.module.globals.get(name) or ir.Function(builder.module, kind, name), arguments)
        return context.get_dummy_value()

    return types.none, (), emit


def _indirect_call(function: Callable, count: int) -> None:
    def rule(context, *kinds):
        if len(kinds) != count + 1 or not all(is_integer(k) for k in kinds):
            return None
        pointer = ir.FunctionType(I64, [I64] * count).as_pointer()

        def emit(builder, values):
            return builder.call(builder.inttoptr(values[0], pointer), values[1:])

        return types.int64, (types.int64,) * (count + 1), emit

    lowers(function)(rule)


_indirect_call(simd.call_entry, 4)
_indirect_call(simd.call_c, 6)
