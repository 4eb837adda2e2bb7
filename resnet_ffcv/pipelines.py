"""A Loader's pipelines: FFCV's Operations, in the order in which a batch goes through them.

What ffcv.pipeline.graph does, without its code generation: each Operation's function is compiled by
itself, as there, and called from Python.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from resnet_ffcv.augment import Augmentation
from resnet_ffcv.beton import RGB_ROW
from resnet_ffcv.buffers import Slot
from resnet_ffcv.decoders import ImageDecoder, check_images
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.first_reads import FirstReads
from resnet_ffcv.kernels.batches import Limits
from resnet_ffcv.kernels.random import absorb
from resnet_ffcv.stock import (
    AllocationQuery,
    BytesDecoder,
    Compiler,
    FloatDecoder,
    IntDecoder,
    ModuleWrapper,
    Operation,
    PipelineSpec,
    SimpleRGBImageDecoder,
    State,
    ToTensor,
)
from resnet_ffcv.storage import Storage

START = State(jit_mode=True, device=torch.device("cpu"), dtype=np.dtype("u1"), shape=None)


@dataclass
class Step:
    """An Operation on the output of another step, or as a decoder (`source` None) on the file.

    What follows `name` is found out by `bind`.
    """

    operation: Any
    source: int | None
    name: str  # of the field
    view: int = 0  # of decoders: how many of the same field come before it
    state: Any = None
    query: Any = None
    shared_query: Any = None
    function: Any = None
    prepare_shared: Any = None
    with_indices: bool = False
    with_state: bool = False

    @property
    def is_direct(self) -> bool:
        """Whether it is called or done without compiling a function for it."""
        kind = type(self.operation)
        return issubclass(kind, ImageDecoder | Augmentation) or kind in (IntDecoder, FloatDecoder)

    @property
    def is_stock_image_decoder(self) -> bool:
        kind = type(self.operation)
        return issubclass(kind, SimpleRGBImageDecoder) and not issubclass(kind, ImageDecoder)

    def call(
        self, source: Any, memory: Any, shared: Any, column: np.ndarray, batch: "Batch"
    ) -> Any:
        """Calls the function as FFCV's generated code does (`ffcv/pipeline/graph.py:74-170`)."""
        state = batch.storage.state(batch.key)
        more: list[Any] = [batch.indices] if self.with_indices else []
        if self.source is None:
            more += [column, state]
        elif self.with_state:
            more.append(state)
        if self.prepare_shared:
            more.append(shared)
        return self.function(source, memory, *more)


@dataclass
class Plan:
    """Steps in the order in which they run, decoders first; which of them are the outputs."""

    steps: list[Step]
    outputs: list[int]

    @property
    def queries(self) -> list[Any]:
        """Of each step: for its own memory, and for that which its Operation's steps share."""
        return [query for step in self.steps for query in (step.query, step.shared_query)]

    def readers(self, place: int | None) -> int:
        """How many steps and outputs a step's result goes to."""
        sources = [step.source for step in self.steps]
        return sources.count(place) + self.outputs.count(place)  # type: ignore[arg-type]


def read_specs(pipelines: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, PipelineSpec]:
    """Each output's pipeline, in the order of the fields, then of those that refer to others.

    The caller's lists are copied. A field without one gets its default one; None disables it.

    Raises:
        UsageError: what is given is no pipeline.
    """
    given: dict[str, PipelineSpec] = {}
    for name, spec in pipelines.items():
        if spec is None:
            continue
        if isinstance(spec, PipelineSpec):
            copy = PipelineSpec(spec.source, spec.decoder, list(spec.transforms))
        elif isinstance(spec, Sequence) and not isinstance(spec, str):
            copy = PipelineSpec(name, None, list(spec))
        else:
            raise UsageError(f"the pipeline of {name} is no list of operations: {spec!r}")
        given[name] = copy
    ordered = {
        name: given.pop(name, None) or PipelineSpec(name)
        for name in fields
        if name in given or name not in pipelines
    }
    return ordered | given


def build_steps(specs: Mapping[str, PipelineSpec], fields: Mapping[str, Any]) -> Plan:
    """The steps of all pipelines, decoders first.

    Raises:
        UsageError: a pipeline of no field, without a decoder, or that refers to none of the others.
    """
    decoders: list[Step] = []
    for name, spec in specs.items():
        if isinstance(spec.source, str):
            if spec.source not in fields:
                raise UsageError(f"pipeline {name}: the file has the fields {', '.join(fields)}")
            decoder = take_decoder(spec, fields[spec.source], name)
            view = sum(step.name == spec.source for step in decoders)
            decoders.append(Step(decoder, None, spec.source, view))
    steps, place_of = list(decoders), {id(s.operation): p for p, s in enumerate(decoders)}
    outputs, next_decoder = [], iter(range(len(decoders)))
    for name, spec in specs.items():
        if isinstance(spec.source, str):
            place = next(next_decoder)
        elif id(spec.source) in place_of:
            place = place_of[id(spec.source)]
        else:
            raise UsageError(f"pipeline {name} refers to an operation of no pipeline before it")
        for operation in spec.transforms:
            operation = as_transform(operation, name)
            steps.append(Step(operation, place, steps[place].name))
            place = len(steps) - 1
            place_of[id(operation)] = place
        outputs.append(place)
    return Plan(steps, outputs)


def as_transform(operation: Any, name: str) -> Any:
    """An Operation behind a decoder, in the pipeline `name`; a torch module becomes one."""
    if isinstance(operation, nn.Module):
        return ModuleWrapper(operation)
    if not isinstance(operation, Operation):
        raise UsageError(f"pipeline {name}: {operation!r} is no operation")
    if isinstance(operation, SimpleRGBImageDecoder | IntDecoder | FloatDecoder):
        raise UsageError(
            f"pipeline {name}: {type(operation).__name__} does not decode this field; images of "
            "resnet_ffcv.fields want a decoder of resnet_ffcv.decoders"
        )
    return operation


def take_decoder(spec: PipelineSpec, field: Any, name: str) -> Any:
    """The pipeline's own decoder, which begins it, or else the field's default one."""
    kind = field.get_decoder_class()
    if spec.decoder is not None:
        return spec.decoder
    if spec.transforms and isinstance(spec.transforms[0], kind):
        return spec.transforms.pop(0)
    if not spec.transforms:
        spec.transforms.append(ToTensor())
    try:
        return kind()
    except TypeError as error:
        raise UsageError(f"pipeline {name} does not begin with a decoder of its field") from error


def bind(plan: Plan, fields: Mapping[str, Any], storage: Storage, *, compiling: bool) -> None:
    """Tells the Operations what they work on, and has them say what they need; for each epoch.

    Args:
        plan: whose steps are filled in.
        fields: of FFCV or ours, by name.
        storage: the file.
        compiling: whether their functions are made, too; for the first epoch.
    """
    read = storage.compile_reader()
    for step in plan.steps:
        operation = step.operation
        operation.accept_field(fields[step.name])
        operation.accept_globals(storage.tables.metadata[step.name], read)
        before = START if step.source is None else plan.steps[step.source].state
        step.state, step.query = operation.declare_state_and_memory(before)
        if isinstance(operation, Augmentation) and plan.readers(step.source) > 1:
            # It works in place; others read the images as they are.
            step.query = AllocationQuery(before.shape, before.dtype)
        step.shared_query = operation.declare_shared_memory(before)
        if compiling and not step.is_direct:
            step.function = operation.generate_code()
            step.with_indices = getattr(step.function, "with_indices", False)
            step.with_state = getattr(step.function, "with_state", False)
            step.prepare_shared = operation.generate_code_for_shared_state()
            if step.source is None or step.state.jit_mode:
                step.function = Compiler.compile(step.function)
                step.prepare_shared = step.prepare_shared and Compiler.compile(step.prepare_shared)


class DamagedError(Exception):
    """Samples of a batch are damaged; carries the statuses (n,), of kernels.status."""

    def __init__(self, statuses: np.ndarray) -> None:
        super().__init__(statuses)
        self.statuses = statuses


@dataclass(frozen=True)
class Batch:
    """What a batch is made from: samples' indices, int64 (n,), in a file, the key of the epoch."""

    indices: np.ndarray
    storage: Storage
    key: np.uint64
    threads: int  # to decode with
    limits: Limits  # of each sample
    first_reads: FirstReads | None  # None: no checksum is compared


def run(plan: Plan, fields: Mapping[str, Any], batch: Batch, slot: Slot) -> tuple[Any, ...]:
    """Decodes a batch, then transforms it. Returns the outputs; their memory is the slot's.

    Raises:
        DamagedError: one or more of the samples are; no transform has seen them.
        FailureError: the file changed since it was opened, or there is too little memory.
    """
    try:
        statuses = _check_before(plan, batch)
        if statuses.any():
            raise DamagedError(statuses)
        return _run_steps(plan, fields, batch, slot)
    except MemoryError as error:
        samples = ", ".join(map(str, batch.indices[:5])) + ", ..." * (len(batch.indices) > 5)
        raise FailureError(
            f"{batch.storage.tables.path}: not enough memory for a batch with the samples "
            f"{samples}; take a smaller batch_size, fewer num_workers, or a lower max_memory"
        ) from error
    finally:
        batch.storage.check()  # before anybody sees the pixels, or blames a sample


def _check_before(plan: Plan, batch: Batch) -> np.ndarray:
    """Statuses, int32 (n,), by the pages' checksums and for decoders that check nothing."""
    statuses: np.ndarray = np.zeros(len(batch.indices), np.int32)
    if batch.first_reads is not None:
        statuses = batch.first_reads.check(batch.indices)
    for step in plan.steps:
        if not step.is_stock_image_decoder:
            continue
        column, state = batch.storage.tables.metadata[step.name], batch.storage.state(batch.key)
        if column.dtype == RGB_ROW:
            found = check_images(column, batch.indices, state, batch.limits)
            np.maximum(statuses, found, out=statuses)
    return statuses


def _run_steps(plan: Plan, fields: Mapping[str, Any], batch: Batch, slot: Slot) -> tuple[Any, ...]:
    results: list[Any] = []
    count, prepared = len(batch.indices), set()
    statuses = np.zeros(count, np.int32)
    for place, step in enumerate(plan.steps):
        memory, shared = slot.views(2 * place, count), slot.views(2 * place + 1, count)
        column = batch.storage.tables.metadata[step.name]
        if isinstance(step.operation, ImageDecoder):
            # Views of a field differ; those of different fields, an image and its mask, do not.
            key = np.uint64(absorb(batch.key, step.view)) if step.view else batch.key
            found = step.operation.decode(
                fields[step.name], column, batch.indices, memory, batch.storage.state(key), key,
                batch.threads, batch.limits,
            )  # fmt: skip
            np.maximum(statuses, found.reshape(count, -1).max(axis=1), out=statuses)
            results.append(memory)
        elif isinstance(step.operation, IntDecoder | FloatDecoder) and step.is_direct:
            memory[:, 0] = column[batch.indices]
            results.append(memory)
        elif step.source is not None and statuses.any():
            raise DamagedError(statuses)
        elif isinstance(step.operation, Augmentation):
            images = results[step.source]  # type: ignore[index]  # it is no decoder
            if memory is not None:
                np.copyto(memory, images)
                images = memory
            # Each step has its own random numbers, and others than a decoder.
            key = np.uint64(absorb(batch.key, place))
            step.operation.augment(images, batch.indices, key, batch.threads)
            results.append(images)
        else:
            if step.prepare_shared and id(step.operation) not in prepared:
                step.prepare_shared(shared)
                prepared.add(id(step.operation))
            if isinstance(step.operation, BytesDecoder):
                memory.fill(0)  # what follows a short sample would be of an earlier one
            source = batch.indices if step.source is None else results[step.source]
            results.append(step.call(source, memory, shared, column, batch))
    if statuses.any():
        raise DamagedError(statuses)
    return tuple(results[place] for place in plan.outputs)
