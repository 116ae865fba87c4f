"""Pointers, vectors and register tiles as values, with a meaning in plain Python.

Kernels are written with these functions only. Run as they stand they work on NumPy arrays, so any kernel can be
stepped through in a debugger; compiled, each becomes a few machine instructions (`minifer/codegen/lowering.py` has the
lowering of each *primitive*: a function of this file listed in PRIMITIVES). A function that is not listed there is
composed of others, and is compiled like any helper. To add a primitive: write its Python meaning here, list it, write
its lowering there; nothing else.

Values
    scalar      i64 (Python int), f32 (numpy.float32), f64
    pointer     `Ptr`: typed address. `p + n`, `p - n`, `p[i]`, `p[i] = v`, all counted in elements
    vector      `Vec`: lanes of one element type; + - * / and comparisons work lane by lane, also with a number
    mask        what comparing vectors gives; & | ~ work; consumed by vselect, vany, vall
    rows, tile  the operands and accumulators of the matrix micro-kernel

A natural vector is 32 bytes: 8 lanes of f32, 4 of f64 or i64, 32 of i8; or twice as many, where registers have 64.
`lanes` tells. Other lane counts arise by vload_n, vconvert.
Integer arithmetic wraps. Floating point follows IEEE 754 with round-to-nearest-even; denormals are kept; `vfma` rounds
once where the machine has a fused multiply-add, else twice, and LLVM may contract `a * b + c` likewise.
"""

from __future__ import annotations

import ctypes

import numpy as np

from minifer.kernels.target import host


class TileConstant(int):
    """A dimension of the register tile: this machine's in plain Python, the target's when compiled for another."""

    name: str

    def __new__(cls, name: str, value: int):
        self = super().__new__(cls, value)
        self.name = name
        return self


#: rows and columns of the register tile (float32)
MR = TileConstant("mr", host().mr)
NR = TileConstant("nr", host().nr)
#: rows of the short tile
SHORT = TileConstant("short", host().short)
#: steps of a product that are written out one after the other
UNROLL = TileConstant("unroll", host().unroll)
#: floats of two natural vectors
PAIR = TileConstant("pair", host().pair)
#: floats of a matrix in a block: two such blocks stay in the second-level cache while the rows of another go by
BLOCK = TileConstant("block", host().block)

#: 1 where four products of bytes are added to 32 bits at once, 0 where two are to 16 bits first
EXACT = TileConstant("exact_bytes", host().exact_bytes)

#: 1 where there are matrix registers, else 0
MATRIX = TileConstant("matrix", host().matrix)

#: rows of sums of products of bytes that are at once in registers
SUM_ROWS = TileConstant("sum_rows", host().sum_rows)

#: bytes of a natural vector
VECTOR = host().vector

PRIMITIVES: set = set()


def primitive(function):
    """Mark a function whose lowering is written by hand."""
    PRIMITIVES.add(function)
    return function


# ---------------------------------------------------------------- numbers


class Scalar:
    """A number type. Calling it converts: `f32(0.1)`. In a compiled kernel it is the machine type."""

    def __init__(self, name: str, dtype: str):
        self.name = name
        self.dtype = np.dtype(dtype)

    @property
    def integer(self) -> bool:
        return self.dtype.kind in "iu"

    @property
    def lanes(self) -> int:
        """Elements in one natural vector."""
        return VECTOR // self.dtype.itemsize

    def __call__(self, value):
        if not self.integer:
            return self.dtype.type(value)
        bits = 8 * self.dtype.itemsize
        value = int(value) & ((1 << bits) - 1)
        return value - (1 << bits) if self.dtype.kind == "i" and value >> (bits - 1) else value

    def __repr__(self) -> str:
        return self.name


f32, f64 = Scalar("f32", "float32"), Scalar("f64", "float64")
i8, i16, i32, i64 = (Scalar(f"i{b}", f"int{b}") for b in (8, 16, 32, 64))
u8, u16, u32, u64 = (Scalar(f"u{b}", f"uint{b}") for b in (8, 16, 32, 64))
SCALARS = {s.name: s for s in (f32, f64, i8, i16, i32, i64, u8, u16, u32, u64)}

# ---------------------------------------------------------------- pointers


class Ptr:
    """A typed address. In plain Python: a flat NumPy array and an offset in elements."""

    __slots__ = ("array", "offset")

    def __init__(self, array: np.ndarray, offset: int = 0):
        self.array = array
        self.offset = int(offset)

    def __add__(self, count) -> Ptr:
        return Ptr(self.array, self.offset + int(count))

    def __sub__(self, count) -> Ptr:
        return Ptr(self.array, self.offset - int(count))

    def __getitem__(self, index):
        value = self.array[self.locate(index)]
        return int(value) if self.array.dtype.kind in "iu" else value

    def __setitem__(self, index, value) -> None:
        self.array[self.locate(index)] = _wrap(value, self.array.dtype)

    def locate(self, index, count: int = 1) -> int:
        """The array index of element `index`; IndexError if `count` elements from there leave the array."""
        start = self.offset + int(index)
        if start < 0 or start + count > self.array.size:
            raise IndexError(f"pointer access [{start}, {start + count}) outside of {self.array.size} elements")
        return start

    def __repr__(self) -> str:
        return f"Ptr({self.array.dtype}[{self.array.size}] + {self.offset})"


def _wrap(value, dtype: np.dtype):
    """A number as one of `dtype`: integers wrap, fractions are cut off."""
    if dtype.kind not in "iu":
        return value
    bits = 8 * dtype.itemsize
    value = int(value) & ((1 << bits) - 1)
    return value - (1 << bits) if dtype.kind == "i" and value >> (bits - 1) else value


def _dtype(t) -> np.dtype:
    """The element dtype of a pointer, a vector, a scalar type (f32 ...) or a number."""
    if isinstance(t, Ptr):
        return t.array.dtype
    return t.dtype if hasattr(t, "dtype") else np.dtype(np.float64 if isinstance(t, float) else np.int64)


@primitive
def lanes(t) -> int:
    """Lanes of a natural vector of the pointer's (or scalar type's, or vector's) elements; constant when compiled."""
    return VECTOR // _dtype(t).itemsize


@primitive
def as_element(p, x):
    """The number x converted to the element type of the pointer, vector or scalar p."""
    dtype = _dtype(p)
    return _wrap(x, dtype) if dtype.kind in "iu" else dtype.type(x)


@primitive
def cast(p: Ptr, element) -> Ptr:
    """The same address seen as elements of another type: `cast(p, u8)`. The address must suit the new type."""
    new, old = element.dtype, p.array.dtype
    start = p.offset * old.itemsize
    shift = start % new.itemsize
    flat = p.array.view(np.uint8)
    size = (flat.size - shift) // new.itemsize * new.itemsize
    return Ptr(flat[shift : shift + size].view(new), start // new.itemsize)


@primitive
def as_ptr(address: int, element) -> Ptr:
    """The memory at an absolute address, as elements of a type: `as_ptr(args[0], i64)`. Nothing checks its bounds."""
    memory = (ctypes.c_uint8 * (1 << 46)).from_address(int(address))
    return Ptr(np.frombuffer(memory, element.dtype), 0)


@primitive
def address_of(p: Ptr) -> int:
    """The absolute address of a pointer, in bytes."""
    return p.array.ctypes.data + p.offset * p.array.dtype.itemsize


# ---------------------------------------------------------------- vectors


class Vec(np.ndarray):
    """A vector value: a NumPy array that takes numbers into its own element type, and never changes in place."""

    def __setitem__(self, index, value):
        raise TypeError("vectors are values: use vset")


def _operator(name: str):
    operation = getattr(np.ndarray, f"__{name}__")

    def method(self, other):
        if isinstance(other, np.ndarray) and other.ndim:
            if other.dtype != self.dtype or other.shape != self.shape:
                raise TypeError(f"vectors differ: {self.dtype} x {self.size} and {other.dtype} x {other.size}")
            return operation(self, other)
        return operation(self, _like(self, other))

    return method


for _name in ("add", "sub", "mul", "truediv", "and", "or", "xor", "lshift", "rshift"):
    setattr(Vec, f"__{_name}__", _operator(_name))
    setattr(Vec, f"__r{_name}__", _operator(f"r{_name}"))
    setattr(Vec, f"__i{_name}__", _operator(_name))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Vec, f"__{_name}__", _operator(_name))


def _vec(array) -> Vec:
    return np.ascontiguousarray(array).view(Vec)


def _like(x, y):
    """y brought to the type of x: a vector of x's lanes, or a number."""
    if isinstance(y, np.ndarray):
        return y
    if isinstance(x, np.ndarray):
        return np.full(x.shape, _wrap(y, x.dtype), x.dtype).view(Vec)
    return as_element(x, y)


def _same(*values):
    """All values in the type of the first vector among them, else as f32 if one is, else in the type of the first."""
    first = next((v for v in values if isinstance(v, np.ndarray) and v.ndim), None)
    if first is None:
        first = next((v for v in values if isinstance(v, np.float32)), values[0])
    return [_like(first, v) for v in values]


def _result(value, like):
    if isinstance(like, np.ndarray) and like.ndim:
        return _vec(value)
    return int(value) if isinstance(like, int) else np.asarray(value)[()]


@primitive
def vload(p: Ptr, i: int) -> Vec:
    """The natural vector at p[i:]."""
    return vload_n(p, i, lanes(p))


@primitive
def vload_n(p: Ptr, i: int, n: int) -> Vec:
    """n lanes at p[i:]; n is a power of two known when compiled (a constant, or lanes(...))."""
    start = p.locate(i, n)
    return p.array[start : start + n].copy().view(Vec)


@primitive
def vload_part(p: Ptr, i: int, n: int) -> Vec:
    """The first n lanes of a natural vector at p[i:], zeros in the rest; memory behind is not touched. Any n."""
    result = np.zeros(lanes(p), p.array.dtype)
    count = min(max(int(n), 0), result.size)
    if count:
        start = p.locate(i, count)
        result[:count] = p.array[start : start + count]
    return result.view(Vec)


@primitive
def vstore(p: Ptr, i: int, v: Vec) -> None:
    """p[i : i + lanes of v] = v; the element types must agree."""
    _check_element(p, v)
    start = p.locate(i, v.size)
    p.array[start : start + v.size] = v


@primitive
def vstore_part(p: Ptr, i: int, v: Vec, n: int) -> None:
    """Store the first n lanes of v to p[i:]; memory behind is not touched. Any n."""
    _check_element(p, v)
    count = min(max(int(n), 0), v.size)
    if count:
        start = p.locate(i, count)
        p.array[start : start + count] = v[:count]


def _check_element(p: Ptr, v: Vec) -> None:
    if p.array.dtype != v.dtype:
        raise TypeError(f"cannot store a vector of {v.dtype} through a pointer to {p.array.dtype}: use vconvert")


@primitive
def vsplat(t, x) -> Vec:
    """A natural vector with x in every lane, for the element type of the pointer or scalar type t: vsplat(f32, 0)."""
    dtype = _dtype(t)
    return np.full(VECTOR // dtype.itemsize, _wrap(x, dtype), dtype).view(Vec)


@primitive
def like(v, x):
    """The number x in the type of v: in every lane if v is a vector, else converted to v's type."""
    return _like(v, x)


@primitive
def viota(t) -> Vec:
    """A natural vector 0, 1, 2, ... for the element type of the pointer or scalar type t."""
    return np.arange(lanes(t)).astype(_dtype(t)).view(Vec)


@primitive
def vget(v: Vec, i: int):
    """Lane i of v (also written v[i])."""
    return int(v[i]) if v.dtype.kind in "iu" else v[i]


@primitive
def vset(v: Vec, i: int, x) -> Vec:
    """v with x in lane i."""
    result = np.array(v)
    result[i] = _wrap(x, v.dtype)
    return result.view(Vec)


@primitive
def vgather(p: Ptr, indices: Vec) -> Vec:
    """p[indices[k]] in lane k; indices is an integer vector. Loads lane by lane: no faster than scalar code."""
    return _vec(p.array[[p.locate(k) for k in indices]])


@primitive
def vfma(a, b, c):
    """a * b + c, rounded once where the target can.

    Vectors or numbers, mixed as you like: numbers take the first vector's type; without a vector all become f32 if
    one is f32. This holds for all arithmetic functions below.
    """
    a, b, c = _same(a, b, c)
    if _dtype(a) == np.float32:
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64) + np.asarray(c, np.float64)
        return _result(product.astype(np.float32) if product.ndim else np.float32(product), a)
    return a * b + c


@primitive
def vmax(a, b):
    """The larger, lane by lane; NaN if either is NaN (as ONNX Max). Vectors or numbers."""
    a, b = _same(a, b)
    return _result(np.maximum(a, b), a)


@primitive
def vmin(a, b):
    """The smaller, lane by lane; NaN if either is NaN (as ONNX Min). Vectors or numbers."""
    a, b = _same(a, b)
    return _result(np.minimum(a, b), a)


@primitive
def vmax_quick(a, b):
    """a if a > b else b: one instruction. If either is NaN the result is b, so relu(x) = vmax_quick(0, x)."""
    a, b = _same(a, b)
    return _result(np.where(a > b, a, b), a)


@primitive
def vmin_quick(a, b):
    """a if a < b else b: one instruction. If either is NaN the result is b."""
    a, b = _same(a, b)
    return _result(np.where(a < b, a, b), a)


@primitive
def vabs(a):
    """Absolute value; clears the sign of floats, also of NaN. The smallest integer stays itself."""
    return _result(np.abs(a), a)


@primitive
def vsqrt(a):
    """Square root, correctly rounded; NaN for negative numbers."""
    return _result(np.sqrt(a), a)


@primitive
def vfloor(a):
    """Largest integral value not above a."""
    return _result(np.floor(a), a)


@primitive
def vceil(a):
    """Smallest integral value not below a."""
    return _result(np.ceil(a), a)


@primitive
def vtrunc(a):
    """a without its fraction."""
    return _result(np.trunc(a), a)


@primitive
def vround(a):
    """Nearest integral value, halves to even."""
    return _result(np.rint(a), a)


@primitive
def vcopysign(a, b):
    """The magnitude of a with the sign bit of b."""
    a, b = _same(a, b)
    return _result(np.copysign(a, b), a)


@primitive
def vselect(mask, a, b):
    """a where the mask holds, else b. Vectors, or a bool and numbers."""
    if isinstance(mask, np.ndarray) and mask.ndim and not any(isinstance(v, np.ndarray) and v.ndim for v in (a, b)):
        raise TypeError("vselect of a vector mask needs a vector among its values")
    a, b = _same(a, b)
    return _result(np.where(mask, a, b)[()], a)


@primitive
def vany(mask) -> bool:
    """Whether any lane of the mask holds."""
    return bool(np.any(mask))


@primitive
def vall(mask) -> bool:
    """Whether every lane of the mask holds."""
    return bool(np.all(mask))


@primitive
def vconvert(v, element):
    """The lanes of v converted to another element type, their number kept: vconvert(vload_n(p, i, 8), i32).

    Float to integer cuts off the fraction, saturates, and turns NaN to 0. Integer to integer wraps. v may be a number.
    """
    new = element.dtype
    a = np.asarray(v)
    if a.dtype.kind == "f" and new.kind in "iu":
        info = np.iinfo(new)
        wide = np.trunc(np.where(np.isnan(a), 0, a).astype(np.float64))
        low, high = wide <= float(info.min), wide >= float(info.max)
        safe = np.where(low | high, 0, wide).astype(new)
        a = np.where(low, new.type(info.min), np.where(high, new.type(info.max), safe))
    converted = a.astype(new)
    return _vec(converted) if isinstance(v, np.ndarray) and v.ndim else as_element(element, converted[()])


@primitive
def bitcast(v, element):
    """The bits of v seen as another element type of the same size. v may be a number (f32 <-> i32, f64 <-> i64)."""
    if isinstance(v, np.ndarray) and v.ndim:
        return v.view(element.dtype)
    if isinstance(v, int):  # bits above the element's are lost, as when it is stored
        v = np.array([v], np.int64).astype({4: np.int32, 8: np.int64}[element.dtype.itemsize])[0]
    return as_element(element, np.array([v]).view(element.dtype)[0])


def _tree(v: Vec, combine):
    while v.size > 1:
        half = v.size // 2
        v = combine(v[:half], v[half:])
    return int(v[0]) if v.dtype.kind in "iu" else v[0]


@primitive
def hsum(v: Vec):
    """Sum of all lanes, by halves: lanes 0..n/2 plus lanes n/2..n, and so on; the same order on every target."""
    return _tree(v, np.add)


@primitive
def hmax(v: Vec):
    """The largest lane; NaN if any is NaN."""
    return _tree(v, np.maximum)


@primitive
def hmin(v: Vec):
    """The smallest lane; NaN if any is NaN."""
    return _tree(v, np.minimum)


@primitive
def vzip_low(a: Vec, b: Vec) -> Vec:
    """a0 b0 a1 b1 ...: the lower halves of a and b interleaved."""
    return _zip(a, b)[: a.size].view(Vec)


@primitive
def vzip_high(a: Vec, b: Vec) -> Vec:
    """The upper halves of a and b interleaved."""
    return _zip(a, b)[a.size :].view(Vec)


def _zip(a, b):
    return np.stack([a, b], 1).reshape(-1)


@primitive
def veven(a: Vec, b: Vec) -> Vec:
    """a0 a2 a4 ... b0 b2 b4 ...: the even lanes of a, then of b."""
    return _vec(np.concatenate([a, b])[0::2])


@primitive
def vodd(a: Vec, b: Vec) -> Vec:
    """a1 a3 a5 ... b1 b3 b5 ...: the odd lanes of a, then of b."""
    return _vec(np.concatenate([a, b])[1::2])


@primitive
def vzip_odd(a: Vec, b: Vec) -> Vec:
    """a1 b1 a3 b3 a5 b5 ...: the odd lanes of a and b interleaved."""
    return _zip(a[1::2], b[1::2]).view(Vec)


@primitive
def vlow(a: Vec) -> Vec:
    """The lower half of the lanes: a vector of half as many."""
    return _vec(a[: a.size // 2])


@primitive
def vhigh(a: Vec) -> Vec:
    """The upper half of the lanes: a vector of half as many."""
    return _vec(a[a.size // 2 :])


@primitive
def vjoin(a: Vec, b: Vec) -> Vec:
    """The lanes of a, then those of b: a vector of twice as many."""
    return _vec(np.concatenate([a, b]))


@primitive
def prefetch(p: Ptr, i: int) -> None:
    """Hint that p[i] will be read soon; any address is allowed."""


# ---------------------------------------------------------------- half precision (composed, not primitive)


def f16_to_f32(h: Vec) -> Vec:
    """float16 bits (u16 lanes) to f32, exactly; keeps denormals, infinities and NaN."""
    bits = vconvert(h, u32)
    magnitude = (bits & 0x7FFF) << 13
    value = bitcast(bitcast(magnitude, f32) * 5.192296858534828e33, u32)  # 2**112 rebiases the exponent
    value = vselect((bits & 0x7C00) == 0x7C00, value | 0x7F800000, value)
    return bitcast(value | ((bits & 0x8000) << 16), f32)


def f32_to_f16(v: Vec) -> Vec:
    """f32 to float16 bits (u16 lanes), rounding to nearest even; overflow gives infinity, NaN stays NaN."""
    bits = bitcast(v, u32)
    sign = (bits >> 16) & 0x8000
    magnitude = bits & 0x7FFFFFFF
    normal = (magnitude + ((magnitude >> 13) & 1) + 0xC8000FFF) >> 13  # rebias by -112 and round
    tiny = bitcast(bitcast(magnitude, f32) + 0.5, u32) - 0x3F000000  # the sum rounds at the denormal's last bit
    special = vselect(magnitude > 0x7F800000, like(bits, 0x7E00), like(bits, 0x7C00))
    half = vselect(magnitude < 0x38800000, tiny, normal & 0xFFFF)
    half = vselect(magnitude >= 0x47800000, special, half)
    return vconvert(half | sign, u16)


def bf16_to_f32(h: Vec) -> Vec:
    """bfloat16 bits (u16 lanes) to f32, exactly."""
    return bitcast(vconvert(h, u32) << 16, f32)


def f32_to_bf16(v: Vec) -> Vec:
    """f32 to bfloat16 bits (u16 lanes), rounding to nearest even; NaN stays NaN."""
    bits = bitcast(v, u32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40
    return vconvert(vselect((bits & 0x7FFFFFFF) > 0x7F800000, quiet, rounded), u16)


# ---------------------------------------------------------------- work sharing


def share(n, tid, nthreads):
    """Where thread `tid`'s part of n items begins: `range(share(n, tid, nthreads), share(n, tid + 1, nthreads))`."""
    return n * tid // nthreads


# ---------------------------------------------------------------- the register tile


class Rows:
    """MR row pointers as a value. In plain Python: a list."""

    def __init__(self, pointers: list[Ptr]):
        self.pointers = pointers


@primitive
def rows_strided(a: Ptr, lda: int, m: int) -> Rows:
    """Row i is a + i * lda for i < m; further rows repeat row m - 1, so that a partial tile reads only valid memory."""
    return Rows([a + min(i, m - 1) * lda for i in range(MR)])


@primitive
def rows_table(a: Ptr, table: Ptr, m: int) -> Rows:
    """Row i is a + table[i] (table: i64, in elements, may be negative) for i < m; further rows repeat row m - 1."""
    return Rows([a + table[min(i, m - 1)] for i in range(MR)])


@primitive
def tile_zero() -> np.ndarray:
    """An MR x NR tile of f32 zeros, held in registers."""
    return np.zeros((MR, NR), np.float32)


@primitive
def tile_zero_short() -> np.ndarray:
    """A SHORT x NR tile of f32 zeros: for the last rows of a matrix. All that takes a tile takes this one."""
    return np.zeros((SHORT, NR), np.float32)


@primitive
def tile_zero_row() -> np.ndarray:
    """A 1 x NR tile of f32 zeros: for a lone row."""
    return np.zeros((1, NR), np.float32)


@primitive
def tile_outer(acc, rows: Rows, p: int, b: Ptr):
    """acc[i, j] += rows[i][p] * b[j]: one step of a matrix product. Reads NR elements of b."""
    column = np.array([r[p] for r in rows.pointers[: len(acc)]], np.float32)
    start = b.locate(0, NR)
    product = vfma(
        _vec(column[:, None].repeat(NR, 1)), _vec(b.array[None, start : start + NR].repeat(len(acc), 0)), _vec(acc)
    )
    return product.view(np.ndarray)


@primitive
def tile_outer4(acc, rows: Rows, p: int, b: Ptr):
    """Four steps at once: p, p + 1, p + 2, p + 3 with b, b + NR, b + 2 * NR, b + 3 * NR."""
    for step in range(4):
        acc = tile_outer(acc, rows, p + step, b + step * NR)
    return acc


@primitive
def tile_outer_part(acc, rows: Rows, p: int, b: Ptr, n: int):
    """tile_outer that reads only n <= NR elements of b and takes the rest as zeros."""
    panel = np.zeros(NR, np.float32)
    start = b.locate(0, n)
    panel[:n] = b.array[start : start + n]
    return tile_outer(acc, rows, p, Ptr(panel))


@primitive
def tile_bias(acc, bias: Ptr, n: int):
    """acc[i, j] += bias[j] for j < n."""
    row = np.zeros(NR, np.float32)
    row[:n] = [bias[j] for j in range(n)]
    return acc + row


@primitive
def tile_bias_column(acc, bias: Ptr, m: int):
    """acc[i, j] += bias[i] for i < m (further rows get bias[m - 1])."""
    return acc + np.array([[bias[min(i, m - 1)]] for i in range(len(acc))], np.float32)


@primitive
def tile_scale(acc, factor):
    """acc *= factor."""
    return acc * np.float32(factor)


@primitive
def tile_scale_columns(acc, factors: Ptr, n: int):
    """acc[i, j] *= factors[j] for j < n (further columns become 0)."""
    row = np.zeros(NR, np.float32)
    row[:n] = [factors[j] for j in range(n)]
    return acc * row


@primitive
def tile_clamp(acc, low, high):
    """acc = min(max(acc, low), high); NaN stays NaN. Use infinities for no bound."""
    acc = np.where(np.float32(low) > acc, np.float32(low), acc)
    return np.where(np.float32(high) < acc, np.float32(high), acc)


@primitive
def tile_add(acc, c: Ptr, ldc: int, m: int, n: int):
    """acc[i, j] += c[i * ldc + j] for i < m (at most the tile's rows), j < n <= NR."""
    acc = acc.copy()
    for i in range(m):
        start = c.locate(i * ldc, n)
        acc[i, :n] += c.array[start : start + n]
    return acc


@primitive
def tile_axpy(acc, factor, c: Ptr, ldc: int, m: int, n: int):
    """acc[i, j] += factor * c[i * ldc + j] for i < m (at most the tile's rows), j < n <= NR."""
    acc = acc.copy()
    for i in range(m):
        start = c.locate(i * ldc, n)
        acc[i, :n] += np.float32(factor) * c.array[start : start + n]
    return acc


@primitive
def tile_store(c: Ptr, ldc: int, acc, m: int, n: int) -> None:
    """c[i * ldc + j] = acc[i, j] for i < m (at most the tile's rows), j < n <= NR; nothing else is touched."""
    for i in range(m):
        start = c.locate(i * ldc, n)
        c.array[start : start + n] = acc[i, :n]


# ---------------------------------------------------------------- the tile of integers


@primitive
def tile_zero_i32() -> np.ndarray:
    """An MR x NR tile of i32 zeros, held in registers."""
    return np.zeros((MR, NR), np.int32)


@primitive
def tile_row_i32() -> np.ndarray:
    """A 1 x NR tile of i32 zeros: for a lone row, which needs no more work than its own."""
    return np.zeros((1, NR), np.int32)


@primitive
def tile_dot_i32(acc, rows: Rows, p: int, b: Ptr):
    """acc[i, j] += rows[i][p] * b[2 * j] + rows[i][p + 1] * b[2 * j + 1]: two steps of a matrix product.

    rows: i16; b: i8, of which 2 * NR are read (column by column two steps of k). Products are exact, sums wrap.
    """
    pairs = np.array([[r[p], r[p + 1]] for r in rows.pointers[: len(acc)]], np.int32)
    start = b.locate(0, 2 * NR)
    return acc + pairs @ b.array[start : start + 2 * NR].astype(np.int32).reshape(NR, 2).T


@primitive
def tile_zero_short_i32() -> np.ndarray:
    """A SHORT x NR tile of i32 zeros. All that takes a tile of integers takes this one."""
    return np.zeros((SHORT, NR), np.int32)


@primitive
def tile_dot4_i32(acc, rows: Rows, p: int, b: Ptr):
    """acc[i, j] += sum over t < 4 of rows[i][p + t] * b[4 * j + t]: four steps of a matrix product.

    rows: u8; b: i8, of which 4 * NR are read. Unless EXACT, neighbouring products are added in 16 bits: the caller sees
    to it that they fit (an AssertionError in plain Python, a saturated sum on some machines).
    """
    return acc + _sums_of_pairs(rows, len(acc), p, b).sum(2, dtype=np.int32)


@primitive
def tile_dot8_i32(acc, rows: Rows, p: int, q: int, b: Ptr):
    """tile_dot4_i32 for steps p and, with the next 4 * NR elements of b, q. The 16-bit sums of both are added in 16
    bits, which the caller sees to fit."""
    total = _sums_of_pairs(rows, len(acc), p, b) + _sums_of_pairs(rows, len(acc), q, b + 4 * NR)
    assert EXACT or np.abs(total).max() < 1 << 15, "a sum does not fit into 16 bits"
    return acc + total.sum(2, dtype=np.int32)


def _sums_of_pairs(rows: Rows, count: int, p: int, b: Ptr) -> np.ndarray:
    start = b.locate(0, 4 * NR)
    weights = b.array[start : start + 4 * NR].astype(np.int32).reshape(1, NR, 4)
    left = np.array([[r[p + t] for t in range(4)] for r in rows.pointers[:count]], np.int32)
    sums = (left[:, None] * weights).reshape(count, NR, 2, 2).sum(3)
    assert EXACT or np.abs(sums).max() < 1 << 15, "a sum does not fit into 16 bits"
    return sums


@primitive
def tile_add_i32(acc, c: Ptr, ldc: int):
    """acc[i, j] += c[i * ldc + j], the whole tile."""
    starts = [c.locate(i * ldc, NR) for i in range(len(acc))]
    return acc + np.array([c.array[start : start + NR] for start in starts])


@primitive
def tile_store_i32(c: Ptr, ldc: int, acc, m: int, n: int) -> None:
    """c[i * ldc + j] = acc[i, j] for i < m (at most the tile's rows), j < n <= NR; nothing else is touched."""
    for i in range(m):
        start = c.locate(i * ldc, n)
        c.array[start : start + n] = acc[i, :n]


# ---------------------------------------------------------------- matrix registers


#: rows and columns of a block; 32-bit words of one part of the numbers of a step: SIDE rows of 16 pairs
SIDE, THIRD = 32, 512

_MATRIX = np.zeros((SIDE, SIDE), np.float32)


@primitive
def matrix_open() -> None:
    """Make ready the matrix registers of this thread, which hold a block of SIDE x SIDE f32. Only where MATRIX is 1."""


@primitive
def matrix_close() -> None:
    """Give the matrix registers back."""


@primitive
def matrix_zero() -> None:
    """The block in the matrix registers becomes zeros."""
    _MATRIX[:] = 0


@primitive
def matrix_load(p: Ptr, step: int) -> None:
    """The block in the matrix registers becomes SIDE rows of SIDE elements, `step` apart (0: the same row)."""
    for i in range(SIDE):
        start = p.locate(i * step, SIDE)
        _MATRIX[i] = p.array[start : start + SIDE]


@primitive
def matrix_store(p: Ptr) -> None:
    """The block in the matrix registers to the SIDE * SIDE elements at p."""
    start = p.locate(0, _MATRIX.size)
    p.array[start : start + _MATRIX.size] = _MATRIX.reshape(-1)


@primitive
def matrix_product(a: Ptr, b: Ptr, turn: int) -> None:
    """One of six products of parts; all six, turn 0 to 5 in this order, add a step of k.

    block[i, j] += sum over k < 32 of a[i, k] b[k, j], for numbers in three parts, less what is below 2^-24 of it. Turns
    6 to 11 do that for the upper half of the rows alone, turns 12 to 17 for the left half of the columns.

    a: u32, a first, a second and a third part of SIDE rows of 32 bfloat16, two in a word, the first in its lower half.
    b: its three parts, each columns 0 to 15 of 16 pairs of rows, a pair in a word, then columns 16 to 31. Denormal
    parts and results count as zero.
    """
    (p, q), part = MATRIX_PRODUCTS[turn % 6], turn // 6
    rows, columns = SIDE // (2 if part == 1 else 1), SIDE // (2 if part == 2 else 1)
    start, other = a.locate(p * THIRD, THIRD), b.locate(q * THIRD, THIRD)
    left = _halves(a.array[start : start + THIRD]).reshape(SIDE, 32)
    right = _halves(b.array[other : other + THIRD]).reshape(2, 16, 16, 2).transpose(1, 3, 0, 2).reshape(32, SIDE)
    _MATRIX[:rows, :columns] = (_MATRIX + left @ right)[:rows, :columns]


@primitive
def matrix_bytes(a: Ptr, lda: int, b: Ptr) -> None:
    """block[i, j] += sum over k < 64 of a[i * lda + k] b[k, j], in a block of i32.

    a: u8; b: i8, 16 times four steps of each of SIDE columns.
    """
    left = np.array([a.array[start : start + 64] for start in (a.locate(i * lda, 64) for i in range(SIDE))], np.int32)
    start = b.locate(0, 64 * SIDE)
    right = b.array[start : start + 64 * SIDE].astype(np.int32).reshape(16, SIDE, 4).transpose(0, 2, 1)
    _MATRIX.view(np.int32)[:] += left @ right.reshape(64, SIDE)


#: which parts of a and b matrix_product multiplies, turn by turn: neighbours share one, which stays in its registers
MATRIX_PRODUCTS = ((2, 0), (0, 0), (0, 2), (0, 1), (1, 1), (1, 0))


def _halves(pairs: np.ndarray) -> np.ndarray:
    """The bfloat16 numbers of u32 words, the lower half of each first."""
    return (pairs.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


# ---------------------------------------------------------------- threads and calls (for the runtime, not for kernels)


@primitive
def atomic_load(p: Ptr, i: int) -> int:
    """Read the i64 p[i] with acquire order."""
    return p[i]


@primitive
def atomic_store(p: Ptr, i: int, v: int) -> None:
    """Write the i64 p[i] with sequentially consistent order."""
    p[i] = v


@primitive
def atomic_add(p: Ptr, i: int, v: int) -> int:
    """Add v to the i64 p[i] in one step; returns the value before."""
    old = p[i]
    p[i] = old + v
    return old


@primitive
def atomic_cas(p: Ptr, i: int, expected: int, new: int) -> int:
    """Replace the i64 p[i] by `new` if it is `expected`, in one step; returns the value before."""
    old = p[i]
    if old == expected:
        p[i] = new
    return old


@primitive
def pause() -> None:
    """Tell the CPU that this is a spinning loop."""


#: what call_entry and call_c call in plain Python: address -> function
ENTRIES: dict[int, object] = {}


@primitive
def call_entry(function: int, args: int, bases: int, tid: int, nthreads: int) -> int:
    """Call a kernel's entry point by address: function(args, bases, tid, nthreads) -> status. All are addresses."""
    return ENTRIES[function](args, bases, tid, nthreads)  # type: ignore[operator]


@primitive
def call_c(function: int, a: int, b: int, c: int, d: int, e: int, f: int) -> int:
    """Call a C function by address with up to six integer or pointer arguments (unused ones 0), e.g. syscall."""
    return ENTRIES[function](a, b, c, d, e, f)  # type: ignore[operator]
