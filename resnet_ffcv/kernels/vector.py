"""A small vocabulary of vectors, for kernels whose every instruction is meant.

Whether LLVM turns a loop into vector code, and into good one, changes with its version and with a
comma in the loop. The functions here emit vector instructions of LLVM's IR themselves:

    @vector_kernel
    def brighten(pixels, amount):            # both int64; `pixels` is an address
        x = load(pixels, I16, 32)            # 32 lanes of 16 bits
        store(pixels, x.add_saturated(broadcast(amount, I16, 32)))

A vector kernel is written in Python that runs once, while numba compiles; its arguments stand for
values known only later. Python's `for` and `if` unroll and choose; `repeat` makes a loop. It is
called from numba code like a function of integers, and is inlined there. Addresses are plain
integers: nothing checks bounds, so its caller must.

A vector may be wider than the CPU's: LLVM splits it. The bits are the same on every CPU.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import cache, update_wrapper
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from resnet_ffcv.kernels.compiling import target

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()


class Scalar:
    """A 64-bit integer: an address or a count."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _other(self, other: "Scalar | int") -> ir.Value:
        return other.value if isinstance(other, Scalar) else ir.Constant(I64, other)

    def __add__(self, other: "Scalar | int") -> "Scalar":
        return Scalar(self.builder, self.builder.add(self.value, self._other(other)))

    def __mul__(self, other: "Scalar | int") -> "Scalar":
        return Scalar(self.builder, self.builder.mul(self.value, self._other(other)))


class Vector:
    """Lanes of integers, or of float32 or float64. Operators work lane by lane.

    Integers wrap, and >> keeps their sign. Floats round after each operation: no two are fused.
    """

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value
        self.lanes: int = value.type.count
        self.element: Any = value.type.element
        self.is_float = self.element in (F32, F64)

    def _other(self, other: "Vector | float") -> ir.Value:
        if isinstance(other, Vector):
            return other.value
        return ir.Constant(self.value.type, [other] * self.lanes)

    def _new(self, value: ir.Value) -> "Vector":
        return Vector(self.builder, value)

    def __add__(self, other: "Vector | float") -> "Vector":
        operation = self.builder.fadd if self.is_float else self.builder.add
        return self._new(operation(self.value, self._other(other)))

    def __sub__(self, other: "Vector | float") -> "Vector":
        operation = self.builder.fsub if self.is_float else self.builder.sub
        return self._new(operation(self.value, self._other(other)))

    def __mul__(self, other: "Vector | float") -> "Vector":
        operation = self.builder.fmul if self.is_float else self.builder.mul
        return self._new(operation(self.value, self._other(other)))

    def __truediv__(self, other: "Vector | float") -> "Vector":
        return self._new(self.builder.fdiv(self.value, self._other(other)))

    def __and__(self, other: "Vector | int") -> "Vector":
        return self._new(self.builder.and_(self.value, self._other(other)))

    def __xor__(self, other: "Vector | int") -> "Vector":
        return self._new(self.builder.xor(self.value, self._other(other)))

    def __lshift__(self, bits: "Vector | int") -> "Vector":
        return self._new(self.builder.shl(self.value, self._other(bits)))

    def __rshift__(self, bits: int) -> "Vector":
        return self._new(self.builder.ashr(self.value, self._other(bits)))

    def _call(self, name: str, *arguments: ir.Value, result: Any = None) -> Any:
        kind = self.value.type
        letters = str(self.element).replace("float", "f32").replace("double", "f64")
        # llvmlite's declare_intrinsic cannot name a vector's type.
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(result or kind, [kind] * len(arguments)),
            f"llvm.{name}.v{self.lanes}{letters}",
        )
        value = self.builder.call(function, list(arguments))
        return value if result else self._new(value)

    def add_saturated(self, other: "Vector | int") -> "Vector":
        total: Vector = self._call("sadd.sat", self.value, self._other(other))
        return total

    def sub_saturated(self, other: "Vector | int") -> "Vector":
        total: Vector = self._call("ssub.sat", self.value, self._other(other))
        return total

    def at_least(self, low: "Vector | float") -> "Vector":
        if not self.is_float:
            most: Vector = self._call("smax", self.value, self._other(low))
            return most
        below = self.builder.fcmp_ordered("<", self.value, self._other(low))
        return self._new(self.builder.select(below, self._other(low), self.value))

    def at_most(self, high: "Vector | float") -> "Vector":
        if not self.is_float:
            least: Vector = self._call("smin", self.value, self._other(high))
            return least
        above = self.builder.fcmp_ordered(">", self.value, self._other(high))
        return self._new(self.builder.select(above, self._other(high), self.value))

    def clip(self, low: "Vector | float", high: "Vector | float") -> "Vector":
        return self.at_least(low).at_most(high)

    def absolute(self) -> "Vector":
        """Of floats."""
        without_sign: Vector = self._call("fabs", self.value)
        return without_sign

    def narrow_saturated(self) -> "Vector":
        """Signed lanes of half the width; what does not fit becomes the nearest that does."""
        half = self.element.width // 2
        clipped = self.clip(-(1 << (half - 1)), (1 << (half - 1)) - 1)
        return self._new(self.builder.trunc(clipped.value, _vector(self.lanes, ir.IntType(half))))

    def narrow(self, element: ir.IntType) -> "Vector":
        """The lower bits of each lane."""
        return self._new(self.builder.trunc(self.value, _vector(self.lanes, element)))

    def widen(self, element: ir.IntType) -> "Vector":
        """The same numbers in wider lanes."""
        return self._new(self.builder.sext(self.value, _vector(self.lanes, element)))

    def widen_unsigned(self, element: ir.IntType) -> "Vector":
        """The same numbers in wider lanes, the highest bit being no sign."""
        return self._new(self.builder.zext(self.value, _vector(self.lanes, element)))

    def to_float(self, element: Any = F32) -> "Vector":
        """Integers as floats."""
        return self._new(self.builder.sitofp(self.value, _vector(self.lanes, element)))

    def to_single(self) -> "Vector":
        """float64 as float32."""
        return self._new(self.builder.fptrunc(self.value, _vector(self.lanes, F32)))

    def truncate(self, element: ir.IntType) -> "Vector":
        """Floats as integers, without their fraction. They must fit."""
        return self._new(self.builder.fptosi(self.value, _vector(self.lanes, element)))

    def round(self, element: ir.IntType) -> "Vector":
        """Floats as the nearest integers, ties to even. They must fit."""
        nearest: Vector = self._call("rint", self.value)
        return nearest.truncate(element)

    def sum(self) -> "Scalar":
        """The sum of all lanes, in their width."""
        total = self._call("vector.reduce.add", self.value, result=self.element)
        return Scalar(self.builder, self.builder.sext(total, I64))

    def is_not(self, number: int) -> "Scalar":
        """Bit i is whether lane i is another number."""
        bits = self.builder.icmp_signed("!=", self.value, self._other(number))
        word = self.builder.bitcast(bits, ir.IntType(self.lanes))
        return Scalar(self.builder, self.builder.zext(word, I64))

    def signs(self) -> "Scalar":
        """Bit i is whether lane i is negative."""
        bits = self.builder.icmp_signed("<", self.value, self._other(0))
        word = self.builder.bitcast(bits, ir.IntType(self.lanes))
        return Scalar(self.builder, self.builder.zext(word, I64))

    def times_q15(self, other: "Vector | int") -> "Vector":
        """(a * b + 2^14) >> 15 of 16-bit lanes: a product where b counts in 1 / 32,768.

        One instruction on x86 from SSSE3 on (pmulhrsw) and on ARM (sqrdmulh). LLVM finds neither
        by itself: it simplifies the plain form first, to one with 32-bit products. The three differ
        where both factors are -32,768 alone, which is forbidden.
        """
        fast = _fast_product()
        a, b = self, self._new(self._other(other))
        if fast is None or self.lanes < 8:
            product = (a.widen(I32) * b.widen(I32) + (1 << 14)) >> 15
            return product.narrow(I16)
        width = max(lanes for lanes in fast if lanes <= self.lanes)
        kind = _vector(width, I16)
        function = cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(kind, [kind, kind]), fast[width]
        )
        parts = []
        for start in range(0, self.lanes, width):
            lanes = range(start, start + width)
            both = [a.shuffle(lanes).value, b.shuffle(lanes).value]
            parts.append(self._new(self.builder.call(function, both)))
        return concatenate(parts)

    def shuffle(self, lanes: Sequence[int], other: "Vector | None" = None) -> "Vector":
        """The named lanes, counted through this vector and on through the other."""
        second = other.value if other else ir.Constant(self.value.type, ir.Undefined)
        mask = ir.Constant(_vector(len(lanes), I32), [int(lane) for lane in lanes])
        return self._new(self.builder.shuffle_vector(self.value, second, mask))

    def where_odd(self, odd: "Vector", even: "Vector") -> "Vector":
        """The lanes of `odd` where these integers are odd, else of `even`."""
        mask = self.builder.icmp_signed("!=", (self & 1).value, self._other(0))
        return self._new(self.builder.select(mask, odd.value, even.value))

    def where_below(self, limit: float, below: "Vector", other: "Vector") -> "Vector":
        """The lanes of `below` where these floats are below the limit, else of `other`."""
        mask = self.builder.fcmp_ordered("<", self.value, self._other(limit))
        return self._new(self.builder.select(mask, below.value, other.value))

    def add_where(self, mask: ir.Value, amount: int) -> "Vector":
        """Adds to the lanes of a mask (see mask_lanes)."""
        return self._new(self.builder.select(mask, (self + amount).value, self.value))

    def as_lanes(self, element: ir.IntType) -> "Vector":
        """The same bits, cut into lanes of another width."""
        lanes = self.lanes * self.element.width // element.width
        return self._new(self.builder.bitcast(self.value, _vector(lanes, element)))


def _vector(lanes: int, element: ir.IntType) -> ir.VectorType:
    return ir.VectorType(element, lanes)


@cache
def _fast_product() -> dict[int, str] | None:
    """{lanes: LLVM's name} of the target's rounding product of 16-bit lanes."""
    triple, _, features = target()
    if triple.startswith(("aarch64", "arm64")):
        return {8: "llvm.aarch64.neon.sqrdmulh.v8i16"}
    found = {
        lanes: name
        for feature, lanes, name in (
            ("ssse3", 8, "llvm.x86.ssse3.pmul.hr.sw.128"),
            ("avx2", 16, "llvm.x86.avx2.pmul.hr.sw"),
            ("avx512bw", 32, "llvm.x86.avx512.pmul.hr.sw.512"),
        )
        if f"+{feature}" in features.split(",")
    }
    return found or None


def load(address: Scalar, element: ir.IntType, lanes: int) -> Vector:
    builder = address.builder
    pointer = builder.inttoptr(address.value, _vector(lanes, element).as_pointer())
    return Vector(builder, builder.load(pointer, align=1))


def store(address: Scalar, vector: Vector) -> None:
    builder = address.builder
    pointer = builder.inttoptr(address.value, vector.value.type.as_pointer())
    builder.store(vector.value, pointer, align=1)


def load_integer(address: Scalar, element: ir.IntType) -> Scalar:
    """A signed integer of the element's width."""
    builder = address.builder
    value = builder.load(builder.inttoptr(address.value, element.as_pointer()), align=1)
    return Scalar(builder, builder.sext(value, I64) if element.width < 64 else value)


def broadcast(scalar: Scalar, element: ir.IntType, lanes: int) -> Vector:
    """The scalar's lower bits in all lanes."""
    builder, kind = scalar.builder, _vector(lanes, element)
    value = builder.trunc(scalar.value, element) if element.width < 64 else scalar.value
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(I32, 0))
    return Vector(builder, first).shuffle([0] * lanes)


def broadcast_float(address: Scalar, lanes: int, element: Any = F32) -> Vector:
    """The float at an address, in all lanes."""
    return load(address, element, 1).shuffle([0] * lanes)


def count_lanes(like: Scalar, element: ir.IntType, lanes: int) -> Vector:
    """0, 1, 2 and so on, in the kernel that `like` is a value of."""
    return Vector(like.builder, ir.Constant(_vector(lanes, element), list(range(lanes))))


def weave(a: Vector, b: Vector) -> Vector:
    """Lanes a0, b0, a1, b1 and so on."""
    return a.shuffle([lane for i in range(a.lanes) for lane in (i, a.lanes + i)], b)


def mask_lanes(bits: Scalar, lanes: int) -> ir.Value:
    """A mask whose lane i is bit i."""
    builder = bits.builder
    return builder.bitcast(builder.trunc(bits.value, ir.IntType(lanes)), _vector(lanes, I1))


def zeros(like: Scalar, element: ir.IntType, lanes: int) -> Vector:
    """Zeros, in the kernel that `like` is a value of."""
    return Vector(like.builder, ir.Constant(_vector(lanes, element), None))


def concatenate(parts: list[Vector]) -> Vector:
    """A power of two of equal vectors as one."""
    while len(parts) > 1:
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [a.shuffle(range(2 * a.lanes), b) for a, b in pairs]
    return parts[0]


def repeat(
    count: Scalar, start: list[Vector], body: Callable[[Scalar, list[Vector]], list[Vector]]
) -> list[Vector]:
    """for i in range(count): values = body(i, values); the values stay in registers."""
    builder = count.builder
    places = [cgutils.alloca_once(builder, vector.value.type) for vector in start]
    for place, vector in zip(places, start, strict=True):
        builder.store(vector.value, place)
    with cgutils.for_range(builder, count.value, intp=I64) as loop:
        values = [Vector(builder, builder.load(place)) for place in places]
        after = body(Scalar(builder, loop.index), values)
        for place, vector in zip(places, after, strict=True):
            builder.store(vector.value, place)
    return [Vector(builder, builder.load(place)) for place in places]


def transpose(rows: list[Vector]) -> list[Vector]:
    """8 rows, each of blocks of 8 lanes: block b of result k is lane 8 b + k of row 0, 1, ... 7.

    Three rounds; each interleaves pairs of rows within their blocks, by 1, 2, then 4 lanes.
    """
    lanes = rows[0].lanes

    def interleaved(step: int, upper: bool) -> list[int]:
        mask = []
        for block in range(0, lanes, 8):
            half = block + (4 if upper else 0)
            for place in range(half, half + 4, step):
                mask += [*range(place, place + step), *range(lanes + place, lanes + place + step)]
        return mask

    for step in (1, 2, 4):
        low, high = interleaved(step, False), interleaved(step, True)
        after = list(rows)
        for first in range(8):
            if not first & step:
                a, b = rows[first], rows[first + step]
                after[first], after[first + step] = a.shuffle(low, b), a.shuffle(high, b)
        rows = after
    # The rounds leave result k at the place with k's three bits in reverse order.
    return [rows[(k & 1) << 2 | k & 2 | k >> 2] for k in range(8)]


def vector_kernel(body: Callable[..., Scalar | None]) -> Any:
    """Makes a function of int64 values, for numba code, of a body written in this vocabulary.

    It returns int64 where the body is annotated to return a Scalar.
    """
    returns = inspect.signature(body).return_annotation is Scalar

    def typed(_typing_context: Any, *arguments: Any) -> Any:
        result = types.int64 if returns else types.void
        signature = result(*[types.int64] * len(arguments))

        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            scalar = body(*(Scalar(builder, value) for value in values))
            return scalar.value if scalar else context.get_dummy_value()

        return signature, generate

    update_wrapper(typed, body)
    # numba passes `*arguments` on as one tuple, unless the signature names them.
    context = inspect.Parameter("typing_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = inspect.signature(body).parameters.values()
    typed.__signature__ = inspect.Signature([context, *named])  # type: ignore[attr-defined]
    made = intrinsic(typed)
    made.body = body
    return made
