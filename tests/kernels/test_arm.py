"""Kernels for ARM, as far as another CPU can tell: they compile, to the instructions meant."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import llvmlite.binding as llvm
import pytest
from llvmlite import ir

from resnet_ffcv.kernels import groups, resample, taps, transform, vector

TRIPLE = "aarch64-unknown-linux-gnu"


@pytest.fixture
def arm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A machine to compile for; the vector vocabulary takes it for its target."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    try:
        target = llvm.Target.from_triple(TRIPLE)
    except RuntimeError:
        pytest.skip("this llvmlite compiles for no ARM")
    vector._fast_product.cache_clear()
    monkeypatch.setattr(vector, "target", lambda: (TRIPLE, "generic", "+neon"))
    yield target.create_target_machine(cpu="generic", features="+neon", opt=3)
    vector._fast_product.cache_clear()


def assemble(kernel: Any, machine: Any) -> str:
    body: Callable[..., Any] = kernel.body
    count = len(inspect.signature(body).parameters)
    module = ir.Module()
    module.triple, module.data_layout = TRIPLE, str(machine.target_data)
    kind = ir.FunctionType(vector.I64, [vector.I64] * count)
    function = ir.Function(module, kind, body.__name__)
    builder = ir.IRBuilder(function.append_basic_block())
    result = body(*(vector.Scalar(builder, value) for value in function.args))
    builder.ret(result.value if result else ir.Constant(vector.I64, 0))
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    return str(machine.emit_assembly(compiled))


@pytest.mark.parametrize(
    ("kernel", "instruction"),
    [
        (resample.first_pass, "sqrdmulh"),
        (resample.first_pass_floats, r"fmul\tv\d+\.4s"),
        (resample.rows_pass_2, "sqrdmulh"),
        (resample.columns_pass_ycc, "sqadd"),
        (resample.columns_pass_rgb, "sqrdmulh"),
        (transform.inverse_8_along_u, "sqrdmulh"),
        (transform.inverse_8_along_v, "sqadd"),
        (transform.inverse_4_along_v, r"sq(xtn|shrn)"),
        (groups.unpack_5, r"\.8h"),
        (taps.area, r"fmul\tv\d+\.2d"),
        (taps.cubic_floats, r"fdiv\tv\d+\.2d"),
        (taps.halve, r"\.4s"),
    ],
)
def test_kernels_compile_for_arm(kernel: Any, instruction: str, arm: Any) -> None:
    assembly = assemble(kernel, arm)
    assert re.search(instruction, assembly)
    assert not re.search(r"^\s+bl\t", assembly, re.MULTILINE), (
        "a call of a library, where an instruction was meant"
    )
