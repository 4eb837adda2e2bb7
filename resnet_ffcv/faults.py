"""Bus errors in mapped files, which become records instead of the end of the process.

Reading a mapping beyond the end of a file that was cut meanwhile, or where a disk or network fails,
raises SIGBUS. `watch` has such a fault recorded: the handler replaces the rest of the mapping by
zeros, so that the thread goes on, and whoever reads asks the record before they trust what was
read. All other bus errors go to the handler that was there before.

The handler is machine code without Python, which no signal handler may call in a foreign thread.
Available on Linux with glibc, on x86-64 and aarch64; elsewhere nothing is watched, and a fault
still ends the process.
"""

import ctypes
import mmap
import platform
import signal
import sys
import weakref
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import llvmlite.binding
import numpy as np
from llvmlite import ir

SLOTS = 1_024  # mappings that can be watched at a time; the others are not
BEGIN, END, FAULT = range(3)  # of a slot: addresses; FAULT is 0 until there is one

# glibc's struct sigaction as int64: handler, mask, flags (32 bits), restorer
ACTION_WORDS, HANDLER, FLAGS = 19, 0, 17
SIG_DFL, SIG_IGN = 0, 1
SA_SIGINFO, SA_ONSTACK, SA_NODEFER = 0x4, 0x0800_0000, 0x4000_0000
SI_CODE, SI_ADDR = 8, 16  # offsets in siginfo_t
PROT_READ, MAP_PRIVATE_FIXED_ANONYMOUS = 1, 0x32
PAGE = mmap.PAGESIZE

I32, I64 = ir.IntType(32), ir.IntType(64)


@lru_cache(maxsize=1)
def is_supported() -> bool:
    """Whether faults can be recorded on this system."""
    return (
        sys.platform == "linux"
        and platform.machine() in ("x86_64", "aarch64")
        and platform.libc_ver()[0] == "glibc"
    )


class Watch:
    """The handler of this process, and the mappings that it knows."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None)
        self.slots: np.ndarray = np.zeros((SLOTS, 3), np.int64)
        self.free = list(range(SLOTS))
        self.previous: np.ndarray = np.zeros(ACTION_WORDS, np.int64)
        self.action: np.ndarray = np.zeros(ACTION_WORDS, np.int64)
        self.default: np.ndarray = np.zeros(ACTION_WORDS, np.int64)
        self.passing_on: np.ndarray = np.zeros(1, np.int64)  # the thread that does
        self.engine = self._compile()
        self.action[HANDLER] = self.engine.get_function_address("on_bus_error")
        self.action[FLAGS] = SA_SIGINFO | SA_ONSTACK | SA_NODEFER

    def install(self) -> None:
        """Makes the handler the process's, if it is not."""
        found: np.ndarray = np.zeros(ACTION_WORDS, np.int64)
        self._sigaction(None, found)
        if found[HANDLER] != self.action[HANDLER]:
            self.previous[:] = found
            self._sigaction(self.action, None)

    def _sigaction(self, new: np.ndarray | None, old: np.ndarray | None) -> None:
        addresses = [
            None if action is None else ctypes.c_void_p(action.ctypes.data) for action in (new, old)
        ]
        if self.libc.sigaction(int(signal.SIGBUS), *addresses):
            raise OSError("sigaction failed for SIGBUS")

    def _compile(self) -> Any:
        llvmlite.binding.initialize_native_target()
        llvmlite.binding.initialize_native_asmprinter()
        module = ir.Module("faults")
        module.triple = llvmlite.binding.get_process_triple()
        _Handler(module, self).build()
        machine = llvmlite.binding.Target.from_triple(module.triple).create_target_machine(opt=1)
        parsed = llvmlite.binding.parse_assembly(str(module))
        engine = llvmlite.binding.create_mcjit_compiler(parsed, machine)
        engine.finalize_object()
        return engine


class _Handler:
    """Generates the handler; docstrings show each part in C."""

    def __init__(self, module: ir.Module, watch: Watch) -> None:
        kind = ir.FunctionType(ir.VoidType(), [I32, I64, I64])
        self.function = ir.Function(module, kind, "on_bus_error")
        self.watch, self.kind = watch, kind
        self.builder = ir.IRBuilder(self.function.append_basic_block())

    def load(self, address: Any, kind: Any = I64) -> Any:
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))

    def store(self, value: Any, address: Any) -> None:
        self.builder.store(value, self.builder.inttoptr(address, I64.as_pointer()))

    def call(self, function: Any, result: Any, *arguments: Any) -> Any:
        """Calls a function of the C library, or one at an address."""
        if isinstance(function, str):
            found = ctypes.cast(getattr(self.watch.libc, function), ctypes.c_void_p).value
            function = ir.Constant(I64, found)
        kind = ir.FunctionType(result, [argument.type for argument in arguments])
        return self.builder.call(self.builder.inttoptr(function, kind.as_pointer()), arguments)

    def build(self) -> None:
        builder, (number, info, context) = self.builder, self.function.args
        code = self.load(builder.add(info, _word(SI_CODE)), I32)
        was_sent = builder.icmp_signed("<=", code, ir.Constant(I32, 0))  # by kill, not by a fault
        with builder.if_then(builder.not_(was_sent)):
            self.find(self.load(builder.add(info, _word(SI_ADDR))))
        self.pass_on(number, info, context, was_sent)
        builder.ret_void()

    def find(self, address: Any) -> None:
        """for (slot = slots; slot < slots + SLOTS; slot++)
        if (slot->begin <= address && address < slot->end) { ...; return; }
        """
        builder, table = self.builder, self.watch.slots
        begin = _word(table.ctypes.data)
        before = builder.block
        loop, after = (self.function.append_basic_block() for _ in range(2))
        builder.branch(loop)
        builder.position_at_end(loop)
        slot = builder.phi(I64)
        slot.add_incoming(begin, before)
        end = self.load(builder.add(slot, _word(8 * END)))
        inside = builder.and_(
            builder.icmp_unsigned("<=", self.load(slot), address),
            builder.icmp_unsigned("<", address, end),
        )
        with builder.if_then(inside):
            self.replace(slot, address, end)
        following = builder.add(slot, _word(table.strides[0]))
        slot.add_incoming(following, builder.block)
        last = _word(table.ctypes.data + table.nbytes)
        builder.cbranch(builder.icmp_unsigned("<", following, last), loop, after)
        builder.position_at_end(after)

    def replace(self, slot: Any, address: Any, end: Any) -> None:
        """page = address & -PAGE;
        if (mmap(page, end - page, ...) == page) { slot->fault = address; return; }
        """
        builder = self.builder
        page = builder.and_(address, _word(-PAGE))
        flags = [ir.Constant(I32, value) for value in (PROT_READ, MAP_PRIVATE_FIXED_ANONYMOUS, -1)]
        mapped = self.call("mmap", I64, page, builder.sub(end, page), *flags, _word(0))
        with builder.if_then(builder.icmp_unsigned("==", mapped, page)):
            self.store(address, builder.add(slot, _word(8 * FAULT)))
            builder.ret_void()

    def pass_on(self, number: Any, info: Any, context: Any, was_sent: Any) -> None:
        """Calls the handler from before. It may hand the signal back to this one, as faulthandler
        does where it was enabled later: then, and without a handler, the signal does what it does
        by default.

        me = pthread_self();
        if (previous is a function && passing_on != me) {
            passing_on = me; previous(number, info, context); passing_on = 0; return;
        }
        if (previous == SIG_IGN && was_sent) return;
        sigaction(number, &default, NULL);
        if (was_sent) raise(number);  // a fault comes again when its instruction does
        """
        builder = self.builder
        previous = self.load(_word(self.watch.previous.ctypes.data))
        passing_on = _word(self.watch.passing_on.ctypes.data)
        me = self.call("pthread_self", I64)
        is_function = builder.icmp_unsigned(">", previous, _word(SIG_IGN))
        is_first = builder.icmp_unsigned("!=", self.load(passing_on), me)
        with builder.if_then(builder.and_(is_function, is_first)):
            self.store(me, passing_on)
            self.call(previous, ir.VoidType(), number, info, context)
            self.store(_word(0), passing_on)
            builder.ret_void()
        ignored = builder.icmp_unsigned("==", previous, _word(SIG_IGN))
        with builder.if_then(builder.and_(ignored, was_sent)):
            builder.ret_void()
        default = _word(self.watch.default.ctypes.data)
        self.call("sigaction", I32, number, default, _word(0))
        with builder.if_then(was_sent):
            self.call("raise", I32, number)


def _word(value: int) -> ir.Constant:
    return ir.Constant(I64, value)


@lru_cache(maxsize=1)
def _watch() -> Watch:
    return Watch()


def install() -> None:
    """Installs the handler, again where another one took its place since; does nothing on systems
    that are not supported."""
    if is_supported():
        _watch().install()


def watch(array: np.ndarray) -> Callable[[], int | None]:
    """Has faults in a mapping recorded, for as long as the array lives.

    Args:
        array: uint8 (bytes,), all of a mapping of a file; it must be what keeps the mapping.

    Returns:
        A function: the offset of the last fault, or None if there was none.
    """
    install()
    if not is_supported() or not (free := _watch().free):
        return lambda: None
    number, slots, begin = free.pop(), _watch().slots, array.ctypes.data
    slots[number] = begin, 0, 0
    slots[number, END] = begin + -(-len(array) // PAGE) * PAGE  # last: it makes the slot valid
    weakref.finalize(array, _forget, number).atexit = False  # other threads may read until the end

    def find_fault() -> int | None:
        address = int(slots[number, FAULT])
        return address - begin if address else None

    return find_fault


def _forget(number: int) -> None:
    _watch().slots[number, END] = 0
    _watch().free.append(number)
