"""Single numbers at addresses, for numba code. Nothing is checked: callers know their bounds."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from resnet_ffcv.kernels.compiling import kernel


def _loader(bits: int, signed: bool) -> Any:
    def load(typing_context: Any, address: Any) -> Any:  # noqa: ARG001  # numba's signature
        def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            kind = ir.IntType(bits)
            value = builder.load(builder.inttoptr(values[0], kind.as_pointer()), align=1)
            extend = builder.sext if signed else builder.zext
            return extend(value, ir.IntType(64)) if bits < 64 else value

        return types.int64(types.int64), generate

    return intrinsic(load)


@intrinsic  # type: ignore[untyped-decorator]
def store_double(typing_context: Any, address: Any, value: Any) -> Any:  # noqa: ARG001
    """A float64 at an address."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], ir.DoubleType().as_pointer())
        builder.store(values[1], pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), generate


def _storer(bits: int) -> Any:
    def store(typing_context: Any, address: Any, value: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
            kind = ir.IntType(bits)
            pointer = builder.inttoptr(values[0], kind.as_pointer())
            builder.store(builder.trunc(values[1], kind), pointer, align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return intrinsic(store)


load_byte = _loader(8, signed=False)
load_u16 = _loader(16, signed=False)
load_i16 = _loader(16, signed=True)
load_u32 = _loader(32, signed=False)
load_u64 = _loader(64, signed=False)  # as an int64: the highest bit becomes a sign
store_byte = _storer(8)
store_i16 = _storer(16)
store_u32 = _storer(32)


@intrinsic  # type: ignore[untyped-decorator]
def add_i16(typing_context: Any, address: Any, value: Any) -> Any:  # noqa: ARG001
    """Adds to the int16 at an address; wraps."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        kind = ir.IntType(16)
        pointer = builder.inttoptr(values[0], kind.as_pointer())
        total = builder.add(builder.load(pointer, align=1), builder.trunc(values[1], kind))
        builder.store(total, pointer, align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def copy_bytes(typing_context: Any, target: Any, source: Any, count: Any) -> Any:  # noqa: ARG001
    """Copies so many bytes from one address to another; the two must not overlap."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        to, of = (builder.inttoptr(value, pointer) for value in values[:2])
        cgutils.raw_memcpy(builder, to, of, values[2], 1)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate


@kernel
def keep(array: np.ndarray) -> None:
    """To be called behind the last use of an array's address: numba frees an array after the last
    use of its name."""


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing_context: Any, address: Any) -> Any:  # noqa: ARG001
    """Asks for the cache line of an address; any address may be asked for."""

    def generate(context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, number, number, number]),
            "llvm.prefetch.p0",
        )
        read, nearest_but_one, data = (ir.Constant(number, value) for value in (0, 2, 1))
        pointer = builder.inttoptr(values[0], byte)
        builder.call(function, [pointer, read, nearest_but_one, data])
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]
def take_next(typing_context: Any, counter: Any) -> Any:  # noqa: ARG001
    """The int64 at an address, which grows by one: no two threads are given the same."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        pointer = builder.inttoptr(values[0], ir.IntType(64).as_pointer())
        one = ir.Constant(ir.IntType(64), 1)
        return builder.atomic_rmw("add", pointer, one, "monotonic")

    return types.int64(types.int64), generate
