"""The memory that batches lie in, used again when nobody refers to it any more.

FFCV overwrites a batch at the next one but two, held or not; to allocate it anew each time would
cost a page fault for each 4 kB. Here each buffer is owned by an array of ours, and whatever is made
of it (views, tensors, views of tensors) keeps a reference to that array: Python's own count says
whether it is free.
"""

import sys
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from resnet_ffcv.stock import AllocationQuery

LOOKED_AT = 16  # slots of which a free one is looked for; a caller may hold thousands
OURS = 2  # references to an owner that nobody else has: the slot's, and the question itself


class Lease:
    """Keeps a slot from being used again for as long as somebody refers to it."""


class Slot:
    """Memory for one batch: a buffer for each query of FFCV's Operations."""

    def __init__(self, queries: Sequence[Any], batch_size: int) -> None:
        self.queries, self.batch_size = queries, batch_size
        self.owners: dict[tuple[int, int], np.ndarray] = {}
        self.lease: weakref.ref[Lease] | None = None
        self.copied: Any = None  # CUDA's event: what the pipeline copies to the device is there

    def views(self, number: int, count: int) -> Any:
        """The memory of query `number` for a batch of `count` samples."""
        query = self.queries[number]
        if query is None:
            return None
        if isinstance(query, AllocationQuery):
            return self._view((number, 0), query, count)
        return tuple(self._view((number, part), q, count) for part, q in enumerate(query))

    def _view(self, key: tuple[int, int], query: Any, count: int) -> Any:
        shape = (count, *(int(side) for side in query.shape))
        is_tensor = isinstance(query.dtype, torch.dtype)
        if is_tensor and query.device is not None and torch.device(query.device).type != "cpu":
            return torch.empty(shape, dtype=query.dtype, device=query.device)  # torch keeps a pool
        one = torch.empty(0, dtype=query.dtype) if is_tensor else np.empty(0, query.dtype)
        size = int(np.prod(shape)) * one.itemsize
        if key not in self.owners:
            self.owners[key] = _allocate(size // max(1, count) * self.batch_size)
        memory = self.owners[key][:size]
        if is_tensor:
            return torch.from_numpy(memory).view(query.dtype).view(shape)
        return memory.view(query.dtype).reshape(shape)

    def lend(self) -> Lease:
        """Has the slot wait until nobody refers to what this returns."""
        lease = Lease()
        self.lease = weakref.ref(lease)
        return lease

    def is_lent(self) -> bool:
        return self.lease is not None and self.lease() is not None

    def is_held(self) -> bool:
        """Whether somebody refers to what was made of it."""
        return any(sys.getrefcount(self.owners[key]) > OURS for key in self.owners)

    def is_copied(self) -> bool:
        """Whether the pipeline copies nothing from here to the device any more."""
        return self.copied is None or bool(self.copied.query())


def _allocate(size: int) -> np.ndarray:
    if not torch.cuda.is_available():
        return np.empty(size, np.uint8)
    pinned: np.ndarray = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return pinned


class Slots:
    """Slots of batches of one kind; as many as are in use at once, and `spare` that are not.

    Without `respect_holders` they are used again though somebody refers to them. With CUDA none is:
    their memory comes from torch's pool of pinned memory, which uses a piece again when nobody
    holds it and what was copied from it, on any stream, has arrived.

    Several threads may take and put slots: a deque needs no lock, which a fork or a garbage
    collector could leave locked.
    """

    def __init__(
        self, queries: Sequence[Any], batch_size: int, *, spare: int, respect_holders: bool
    ) -> None:
        self.queries, self.batch_size, self.spare = queries, batch_size, spare
        self.respect_holders = respect_holders
        self.kept: deque[Slot] = deque()

    def take(self) -> Slot:
        """A free slot; a new one where there is none."""
        if torch.cuda.is_available():
            self._let_go_of_copied()
            return Slot(self.queries, self.batch_size)
        free: list[Slot] = []
        for slot in self._pop(LOOKED_AT):
            held = slot.is_lent() or (self.respect_holders and slot.is_held())
            (self.kept if held else free).append(slot)  # held ones go to the end
        self.kept.extendleft(free[1 : self.spare])  # others were of batches that are gone
        return free[0] if free else Slot(self.queries, self.batch_size)

    def put(self, slot: Slot) -> None:
        """A slot that was taken comes back; its batch may still be in use."""
        self.kept.append(slot)

    def _let_go_of_copied(self) -> None:
        for slot in self._pop(len(self.kept)):
            if not slot.is_copied():
                self.kept.append(slot)

    def _pop(self, most: int) -> Iterator[Slot]:
        """Up to `most` of the slots that are kept now, the longest unused first."""
        for _ in range(min(most, len(self.kept))):
            try:
                yield self.kept.popleft()
            except IndexError:  # another thread was faster
                return
