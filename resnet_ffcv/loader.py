"""A drop-in for ffcv.loader.Loader that keeps its promises.

The order of an epoch, and every random number of our decoders, are functions of (seed, epoch,
sample) alone: not of threads, ranks, batch sizes, nor of where an epoch was interrupted. Errors
reach the caller, threads end with their epoch, and a batch stays what it was.
"""

import hashlib
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import numpy as np

from resnet_ffcv import orders
from resnet_ffcv.beton import Tables, UnknownFieldError, read_tables
from resnet_ffcv.buffers import Slots
from resnet_ffcv.decoders import LIMITS
from resnet_ffcv.epochs import Epoch, Producer, Progress, Settings
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.fields import FIELDS
from resnet_ffcv.first_reads import FirstReads
from resnet_ffcv.kernels.batches import Limits
from resnet_ffcv.kernels.random import epoch_key
from resnet_ffcv.pipelines import bind, build_steps, read_specs
from resnet_ffcv.stock import TYPE_ID_HANDLER, Compiler, OrderOption, TraversalOrder
from resnet_ffcv.storage import Storage

# Which epoch an Operation works for, by its id: it remembers what it was told of one Loader's
# file. An epoch keeps its Operations, so that no other one has the id of one that works.
_serves: "weakref.WeakValueDictionary[int, Producer]" = weakref.WeakValueDictionary()


class Loader:
    """Batches of a .beton, by FFCV's pipelines; takes FFCV's arguments.

    `iter()` begins the next epoch, which yields a tuple of the pipelines' outputs for each batch.
    An epoch that is left ends its threads. Several epochs and Loaders may run at once, and several
    threads may call next() on one epoch. A next() that Ctrl-C interrupts ends its epoch; one that
    waits for longer than 30 s is reported by a warning of the logger `resnet_ffcv`.

    Args:
        fname: path of the file.
        batch_size: samples in a batch, of one rank.
        num_workers: threads that decode; below 1: as many as the process may use cores.
        os_cache: whether what was read stays in the system's page cache; without, it is dropped
            once it is decoded, which suits a set much larger than memory.
        order: SEQUENTIAL, RANDOM, QUASI_RANDOM (random, but from few pages of the file at a time,
            for sets larger than memory), or a class of FFCV's TraversalOrder, of all ranks' order.
        distributed: takes rank and world_size from torch.distributed.
        seed: of the order and of what decoders draw; None: another one each time, or 0 where
            there are several ranks, which must have the same.
        indices: of the samples to show; None: all.
        pipelines: for each field, or name of your own, FFCV Operations and torch modules. A missing
            field gets its default pipeline, None leaves it out.
        custom_fields: classes of fields that are neither FFCV's nor of resnet_ffcv.fields.
        drop_last: whether what is left behind the last whole batch of all ranks is left out; else
            it is divided among them, each sample once, and a rank may have a batch less.
        batches_ahead: batches that are decoded before they are asked for.
        recompile: whether Operations make their functions anew for each epoch.
        rank, world_size: which share of each global batch is this process's.
        copy: None: a batch stays what it was for as long as it is held. False: it is valid until
            the next one is asked for, so only one thread may call next(). True: it is a copy.
        on_error: what becomes of damaged samples, where decoders of resnet_ffcv find them. raise:
            FailureError, with file, sample and cause. skip: their batch is so much smaller, and
            `damaged` has them.
        max_pixels: of an image, height times width; one with more is damaged.
        max_memory: bytes that decoding one sample may take of a thread's memory; a sample that
            takes more is damaged. The memory stays allocated for the epochs to come.
        verify: "once" compares each page of a file by write_datasets.py with its checksum when a
            batch first reads from it, and all else at once; a sample in a page that differs is
            damaged. Costs about a second a gigabyte and core, once. None: no comparison.

    Attributes:
        damaged: {index: cause} of the samples that were skipped so far.
        indices: int64 (n,), the samples shown.
        next_epoch: the number of the epoch that `iter()` begins; may be set.
        reader: of the file: its fields' `handlers`, `metadata`, `num_samples`, `page_size`,
            `alloc_table`.

    Raises:
        UsageError: an argument that cannot be.
        FailureError: a file that cannot be opened, is unfinished or damaged.
    """

    def __init__(
        self,
        fname: str | os.PathLike[str],
        batch_size: int,
        num_workers: int = -1,
        os_cache: bool = True,
        order: Any = OrderOption.SEQUENTIAL,
        distributed: bool = False,
        seed: int | None = None,
        indices: Sequence[int] | np.ndarray | None = None,
        pipelines: Mapping[str, Any] | None = None,
        custom_fields: Mapping[str, type] | None = None,
        drop_last: bool = True,
        batches_ahead: int = 3,
        recompile: bool = False,
        *,
        rank: int = 0,
        world_size: int = 1,
        copy: bool | None = None,
        on_error: str = "raise",
        max_pixels: int = LIMITS.pixels,
        max_memory: int = LIMITS.memory,
        verify: str | None = None,
    ) -> None:
        if distributed:
            rank, world_size = _find_rank()
        self.fname, self.batch_size, self.order = str(fname), batch_size, order
        self.num_workers = num_workers if num_workers >= 1 else len(os.sched_getaffinity(0))
        self.os_cache, self.distributed, self.drop_last = os_cache, distributed, drop_last
        self.seed = _draw_seed(world_size) if seed is None else seed
        self.batches_ahead, self.recompile = batches_ahead, recompile
        self.rank, self.world_size, self.copy, self.on_error = rank, world_size, copy, on_error
        self.max_pixels, self.max_memory, self.verify = max_pixels, max_memory, verify
        self._check_arguments()
        self.limits = Limits(self.max_pixels, self.max_memory)
        self._pipelines, self._custom_fields = dict(pipelines or {}), dict(custom_fields or {})
        tables, self.fields = open_tables(Path(fname), self._custom_fields)
        self.storage = Storage(tables)
        self.first_reads = FirstReads(self.storage, self.num_workers) if verify else None
        self.reader = SimpleNamespace(
            file_name=self.fname,
            handlers=self.fields,
            metadata=tables.metadata,
            num_samples=len(tables.metadata),
            page_size=tables.page_size,
            alloc_table={"sample_id": tables.samples, "ptr": tables.starts, "size": tables.sizes},
        )
        self.indices = check_indices(indices, len(tables.metadata))
        self._whole_order = self._choose_order()
        self.plan = build_steps(read_specs(self._pipelines, self.fields), self.fields)
        self.code: tuple[Any, ...] | None = None  # the Operations' functions, once they are made
        self._slots: Slots | None = None
        self.damaged: dict[int, str] = {}
        self.next_epoch = 0
        if len(self.indices) < (batch_size * world_size if drop_last else 1):
            ranks = f" for each of {world_size} ranks" if world_size > 1 else ""
            raise UsageError(
                f"{self.fname}: {len(self.indices):,} samples give no batch of "
                f"{self.batch_size:,}{ranks}; take a smaller batch_size, or drop_last=False"
            )

    @property
    def next_epoch(self) -> int:
        return self._next[0]

    @next_epoch.setter
    def next_epoch(self, epoch: int) -> None:
        self._set_position(epoch, 0)

    def _set_position(self, epoch: int, samples: int) -> None:
        # What an epoch that still runs hands out no longer counts.
        self._latest = (epoch, samples, Progress())
        self._next = (epoch, samples)  # where iter() begins; one tuple, so never half changed

    def _check_arguments(self) -> None:
        for name in ("batch_size", "batches_ahead", "rank", "world_size", "seed", "max_pixels",
                     "max_memory"):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int | np.integer):
                raise UsageError(f"{name}={value!r}: wanted is a whole number")
            setattr(self, name, int(value))
        wanted = {
            "batch_size": (self.batch_size >= 1, "a whole number from 1"),
            "seed": (0 <= self.seed < 2**63, "a whole number from 0, below 2^63"),
            "batches_ahead": (self.batches_ahead >= 1, "a whole number from 1"),
            "world_size": (self.world_size >= 1, "a whole number from 1"),
            "rank": (
                0 <= self.rank < self.world_size, f"from 0, below world_size={self.world_size}"
            ),
            "copy": (self.copy in (None, True, False), "None, True or False"),
            "on_error": (self.on_error in ("raise", "skip"), "raise or skip"),
            "max_pixels": (1 <= self.max_pixels < 2**62, "a whole number from 1, below 2^62"),
            "max_memory": (1 <= self.max_memory < 2**62, "a whole number from 1, below 2^62"),
            "verify": (self.verify in (None, "once"), "None or once"),
        }  # fmt: skip
        for name, (right, words) in wanted.items():
            if not right:
                raise UsageError(f"{name}={getattr(self, name)!r}: wanted is {words}")

    def _choose_order(self) -> Callable[[int], np.ndarray]:
        """The order of all ranks, as a function of the epoch."""
        if self.order == OrderOption.SEQUENTIAL:
            return lambda _: self.indices
        if self.order == OrderOption.RANDOM:
            return lambda epoch: orders.random_order(self.indices, self.seed, epoch)
        if self.order == OrderOption.QUASI_RANDOM:
            pointers = self.storage.tables.pointers()
            if not pointers:
                raise UsageError(f"{self.fname} has no pages, as QUASI_RANDOM wants; take RANDOM")
            pages = (pointers[0] // self.reader.page_size)[self.indices]
            return lambda epoch: orders.quasi_random_order(self.indices, pages, self.seed, epoch)
        if isinstance(self.order, type) and issubclass(self.order, TraversalOrder):
            return self.order(self).sample_order  # type: ignore[no-any-return]
        raise UsageError(
            f"order={self.order!r}: wanted is an OrderOption, or a TraversalOrder class"
        )

    def share(self, start: int = 0) -> np.ndarray:
        """int64 (batches, 2): this rank's batches in the order of all, see orders.share."""
        return orders.share(
            len(self.indices), self.batch_size, self.rank, self.world_size,
            drop_last=self.drop_last, start=start,
        )  # fmt: skip

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.share())

    def __iter__(self) -> Epoch:
        epoch, start = self._next
        self.storage.begin_epoch()
        self._bind()
        order = check_indices(self._whole_order(epoch), self.reader.num_samples)
        if len(order) != len(self.indices):
            raise UsageError(
                f"order: {len(order):,} samples where all ranks have {len(self.indices):,}"
            )
        batches = [order[begin:end] for begin, end in self.share(start)]
        producer = Producer(self._settings(epoch), batches)
        for step in self.plan.steps:
            _serves[id(step.operation)] = producer
        progress = Progress(damaged=self.damaged)
        self._latest, self._next = (epoch, start, progress), (epoch + 1, 0)
        return Epoch(producer, progress)

    def _settings(self, epoch: int) -> Settings:
        return Settings(
            fname=self.fname, storage=self.storage, plan=self.plan, fields=self.fields,
            slots=self._slots_for_plan(), key=np.uint64(epoch_key(self.seed, epoch)),
            num_workers=self.num_workers, batches_ahead=self.batches_ahead,
            by_page=self.order == OrderOption.QUASI_RANDOM, os_cache=self.os_cache,
            copy=self.copy, on_error=self.on_error, limits=self.limits,
            first_reads=self.first_reads,
        )  # fmt: skip

    def _bind(self) -> None:
        for step in self.plan.steps:
            serving = _serves.get(id(step.operation))
            if serving and serving.settings.plan is not self.plan and serving.is_running:
                raise UsageError(
                    f"the pipelines of {self.fname} hold a {type(step.operation).__name__} that "
                    f"serves {serving.settings.fname} now; make one for each Loader"
                )
        # Not numba's own set_num_threads: it takes a lock that an interrupt can leave locked. The
        # epoch's thread, which no signal reaches, calls it.
        Compiler.num_threads = min(self.num_workers, numba.config.NUMBA_NUM_THREADS)
        compiling = self.code is None or self.recompile
        bind(self.plan, self.fields, self.storage, compiling=compiling)
        self.code = tuple(step.function for step in self.plan.steps)

    def _slots_for_plan(self) -> Slots:
        """Those of the last epoch, unless an output's size was changed since."""
        slots = self._slots
        if slots is None or slots.queries != self.plan.queries:
            slots = self._slots = Slots(
                self.plan.queries, self.batch_size, spare=self.batches_ahead + 2,
                respect_holders=self.copy is not False,
            )  # fmt: skip
        return slots

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch begun last stands, by the batches that were handed out.

        seed, epoch; samples of it that all ranks were given; dataset, of the file and the indices.
        """
        epoch, samples = self._find_position()
        return {"seed": self.seed, "epoch": epoch, "samples": samples, "dataset": self.checksum}

    def _find_position(self) -> tuple[int, int]:
        epoch, start, progress = self._latest
        if not (progress.batches or progress.is_whole):
            return epoch, start
        rest, step = len(self.indices) - start, self.batch_size * self.world_size
        end = start + (rest // step * step if self.drop_last else rest)
        samples = end if progress.is_whole else min(start + progress.batches * step, end)
        return (epoch + 1, 0) if samples == end else (epoch, samples)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Has the next `iter()` go on there; ranks and batch size may be others.

        The seed becomes the state's.

        Raises:
            UsageError: what is given is no state.
            FailureError: the state is of a file with other tables, or of another order or indices.
        """
        names = ("seed", "epoch", "samples", "dataset")
        if not isinstance(state, Mapping) or any(name not in state for name in names):
            raise UsageError(f"a state has {', '.join(names)}; found is {state!r:.100}")
        if state["dataset"] != self.checksum:
            raise FailureError(
                f"{self.fname}: the state was saved with another file, order or choice of indices"
            )
        for name in ("seed", "epoch", "samples"):
            value = state[name]
            if not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
                raise UsageError(f"a state has {name}, a whole number from 0; found is {value!r}")
        if state["samples"] > len(self.indices):
            raise UsageError(
                f"a state of {state['samples']} samples, where an epoch has {len(self.indices):,}"
            )
        self.seed = int(state["seed"])
        self._set_position(int(state["epoch"]), int(state["samples"]))
        self._whole_order = self._choose_order()  # one of the user's may have taken the seed

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the file's tables, of the indices and of the kind of order."""
        tables, digest = self.storage.tables, hashlib.sha256(repr(self.order).encode())
        for part in (tables.metadata, tables.starts, tables.sizes, self.indices):
            digest.update(np.ascontiguousarray(part).view(np.uint8).data)
        return digest.hexdigest()

    def filter(self, field_name: str, condition: Callable[[Any], bool]) -> "Loader":
        """A Loader of those of this one's samples whose decoded field meets a condition.

        Both have the same Operations, and run one at a time.
        """
        if field_name not in self.fields:
            raise UsageError(
                f"field_name={field_name!r}: {self.fname} has {', '.join(self.fields)}"
            )
        only = dict.fromkeys({*self.fields, *self._pipelines})
        only[field_name] = self._pipelines.get(field_name)
        if only[field_name] is None:
            del only[field_name]
        every = self._again(order=OrderOption.SEQUENTIAL, drop_last=False, pipelines=only,
                            distributed=False, rank=0, world_size=1)  # fmt: skip
        met = [bool(condition(sample)) for (batch,) in every for sample in batch]
        shown = self.indices[~np.isin(self.indices, list(every.damaged))]  # others were skipped
        return self._again(indices=shown[np.array(met, bool)])

    def _again(self, **changes: Any) -> "Loader":
        given = {
            "fname": self.fname, "batch_size": self.batch_size, "num_workers": self.num_workers,
            "os_cache": self.os_cache, "order": self.order, "distributed": self.distributed,
            "seed": self.seed, "indices": self.indices, "pipelines": self._pipelines,
            "custom_fields": self._custom_fields, "drop_last": self.drop_last,
            "batches_ahead": self.batches_ahead, "recompile": self.recompile, "rank": self.rank,
            "world_size": self.world_size, "copy": self.copy, "on_error": self.on_error,
            "max_pixels": self.max_pixels, "max_memory": self.max_memory, "verify": self.verify,
        }  # fmt: skip
        return type(self)(**(given | changes))


def open_tables(path: Path, custom_fields: Mapping[str, type]) -> tuple[Tables, dict[str, Any]]:
    """(a file's tables, its fields by name: of FFCV, of ours, or as `custom_fields` has them).

    Raises:
        FailureError: see beton.read_tables; or a field that is not known.
    """
    made: dict[str, Any] = {}

    def make(name: str) -> Callable[[bytes], np.dtype]:
        def row(arguments: bytes) -> np.dtype:
            kind: Any = custom_fields[name]
            made[name] = kind.from_binary(np.frombuffer(arguments, np.uint8))
            row_type: np.dtype = np.dtype(made[name].metadata_type)
            return row_type

        return row

    try:
        tables = read_tables(path, {name: make(name) for name in custom_fields})
    except UnknownFieldError as error:
        raise UsageError(f"{error}; custom_fields says of which class it is") from error
    fields = {}
    for field in tables.fields:
        if field.name not in made:
            kind: Any = TYPE_ID_HANDLER[field.type_id] or FIELDS[field.form or ""]
            made[field.name] = kind.from_binary(np.frombuffer(field.arguments, np.uint8))
        fields[field.name] = made[field.name]
    return tables, fields


def check_indices(indices: Any, samples: int) -> np.ndarray:
    """int64 (n,) of what may be given as indices; all of them for None.

    Raises:
        UsageError: no whole numbers, or none of a sample.
    """
    if indices is None:
        return np.arange(samples)
    found = np.asarray(indices)
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise UsageError(f"indices: wanted are whole numbers, found {found.dtype} {found.shape}")
    if found.size and (found.min() < 0 or found.max() >= samples):
        raise UsageError(
            f"indices from {found.min()} to {found.max()}: the file has samples 0 to {samples - 1}"
        )
    return found.astype(np.int64)


def _draw_seed(world_size: int) -> int:
    return int(np.random.default_rng().integers(2**31)) if world_size == 1 else 0


def _find_rank() -> tuple[int, int]:
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        raise UsageError(
            "distributed=True wants torch.distributed's process group; or give rank and world_size"
        )
    return distributed.get_rank(), distributed.get_world_size()
