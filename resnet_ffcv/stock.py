"""What is taken of FFCV (1.0.2); the one module that imports it.

Importing ffcv, making one of its Loaders and each `iter()` set torch's thread count for the whole
process (`ffcv/pipeline/compiler.py:17`); from here on torch's count stays the user's.
"""

import ctypes
import os
import sys

import numba
import torch

_threads = torch.get_num_threads()
from ffcv.fields.base import ARG_TYPE, Field  # noqa: E402  # this sets torch's threads to 1
from ffcv.fields.basics import FloatDecoder, IntDecoder  # noqa: E402
from ffcv.fields.bytes import BytesDecoder  # noqa: E402
from ffcv.fields.decoders import SimpleRGBImageDecoder  # noqa: E402
from ffcv.loader import OrderOption  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.pipeline.operation import Operation  # noqa: E402
from ffcv.pipeline.pipeline_spec import PipelineSpec  # noqa: E402
from ffcv.pipeline.state import State  # noqa: E402
from ffcv.transforms import ModuleWrapper, Squeeze, ToDevice, ToTensor  # noqa: E402
from ffcv.traversal_order.base import TraversalOrder  # noqa: E402
from ffcv.types import TYPE_ID_HANDLER  # noqa: E402

torch.set_num_threads(_threads)

__all__ = [
    "ARG_TYPE",
    "TYPE_ID_HANDLER",
    "AllocationQuery",
    "BytesDecoder",
    "Compiler",
    "Field",
    "FloatDecoder",
    "IntDecoder",
    "ModuleWrapper",
    "Operation",
    "OrderOption",
    "PipelineSpec",
    "SimpleRGBImageDecoder",
    "Squeeze",
    "State",
    "ToDevice",
    "ToTensor",
    "TraversalOrder",
]


def _keep_tbb() -> None:
    """One more reference to numba's TBB, so that the end of the process does not unload it.

    Unloading waits for a task that was begun when FFCV was imported. Forking drops that task where
    no thread has run it, as on one CPU, and the process would wait for ever (numba's tbbpool.cpp,
    launch_threads, prepare_fork and unload_tbb). torch's DataLoader forks its workers.
    """
    if tbb := sys.modules.get("numba.np.ufunc.tbbpool"):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(tbb))


os.register_at_fork(before=_keep_tbb)


def _set_decoding_threads(cls: type, count: int) -> None:
    """`Compiler.set_num_threads` for numba's threads alone, and never more than numba has."""
    cls.num_threads = min(count, numba.config.NUMBA_NUM_THREADS)  # type: ignore[attr-defined]
    numba.set_num_threads(cls.num_threads)  # type: ignore[attr-defined]


Compiler.set_num_threads = classmethod(_set_decoding_threads)
