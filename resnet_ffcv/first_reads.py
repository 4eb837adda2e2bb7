"""Pages of a .beton against the checksums of its manifest, each when it is first read."""

import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from resnet_ffcv.checksums import Compared
from resnet_ffcv.errors import FailureError, UsageError
from resnet_ffcv.kernels import status
from resnet_ffcv.manifest import manifest_path, read_manifest
from resnet_ffcv.storage import Storage


class FirstReads:
    """Compares all but the pages at once, and each page when a batch first reads from it.

    Args:
        storage: the file.
        threads: to compare pages with.

    Raises:
        UsageError: the file has no manifest.
        FailureError: the manifest is of another file; or what is not in pages differs.
    """

    def __init__(self, storage: Storage, threads: int) -> None:
        tables, path = storage.tables, storage.tables.path
        if not manifest_path(path).exists():
            raise UsageError(
                f"verify='once' needs the checksums in {manifest_path(path).name}, which {path} "
                "does not have; write the file with write_datasets.py, or leave verify out"
            )
        sums = read_manifest(path).pages
        pages = (tables.data_end - tables.data_start) // tables.page_size
        if (sums.size, sums.first, len(sums.crc32)) != (tables.page_size, tables.data_start, pages):
            raise FailureError(
                f"manifest {manifest_path(path)} is not of {path}: its pages are others; write "
                "them again"
            )
        self.storage, self.threads, self.expected = storage, threads, sums.crc32
        self.compared: np.ndarray = np.zeros(pages, bool)
        self.differs: np.ndarray = np.zeros(pages, bool)
        found = Compared(
            head=self._sum(0, tables.data_start) != sums.head_crc32,
            table=self._sum(tables.data_end, storage.size) != sums.table_crc32,
        )
        storage.check()
        if found.words:
            raise FailureError(f"{path}: {'; '.join(found.words)}; write it again")

    def check(self, indices: np.ndarray) -> np.ndarray:
        """int32 (n,), of kernels.status: CHECKSUM for each sample with data in a page that differs.

        Two epochs that run at once may both compare a page.
        """
        tables = self.storage.tables
        found: np.ndarray = np.full(len(indices), status.WHOLE, np.int32)
        for numbers, rows in self.storage.regions(indices):
            pages = (tables.starts[rows].astype(np.int64) - tables.data_start) // tables.page_size
            self._compare(np.unique(pages[~self.compared[pages]]).tolist())
            found[numbers[self.differs[pages]]] = status.CHECKSUM
        return found

    def _compare(self, pages: Sequence[int]) -> None:
        if not pages:
            return
        with ThreadPoolExecutor(min(self.threads, len(pages)), "compare pages") as pool:
            self.differs[pages] = list(pool.map(self._page_differs, pages))
        self.compared[pages] = True

    def _page_differs(self, page: int) -> bool:
        size = self.storage.tables.page_size
        begin = self.storage.tables.data_start + page * size
        return self._sum(begin, begin + size) != self.expected[page]

    def _sum(self, begin: int, end: int) -> str:
        return f"{zlib.crc32(self.storage.file[begin:end].data):08x}"
