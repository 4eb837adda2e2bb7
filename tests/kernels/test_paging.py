"""Advice on parts of a file never reaches outside its mapping, whatever the parts say."""

import mmap

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from resnet_ffcv.kernels import paging

PAGE = mmap.PAGESIZE
BEFORE, LENGTH, AFTER = 4 * PAGE, 6 * PAGE + 100, 5 * PAGE
ANYWHERE = st.one_of(
    st.integers(-LENGTH - 2 * AFTER, LENGTH + 2 * AFTER), st.integers(-(2**63), 2**63 - 1)
)


@given(parts=st.lists(st.tuples(ANYWHERE, ANYWHERE), max_size=20))
def test_what_is_dropped_lies_inside_the_file(parts: list[tuple[int, int]]) -> None:
    # Anonymous memory, which madvise sets to 0, stands for the file and for what lies around it.
    memory = mmap.mmap(-1, BEFORE + LENGTH + AFTER, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    everything = np.frombuffer(memory, np.uint8)
    memory[:] = b"\7" * len(memory)
    starts, sizes = (np.array([part[place] for part in parts], np.int64) for place in (0, 1))
    paging.drop(-1, everything.ctypes.data + BEFORE, LENGTH, starts, sizes)
    paging.will_need(-1, LENGTH, starts, sizes)
    expected = np.full(len(everything), 7, np.uint8)
    for start, size in parts:
        inside = range(LENGTH)[slice(max(start, 0), max(start + size, 0))] if start >= 0 else []
        for page in range(0, LENGTH - PAGE + 1, PAGE):
            if len(inside) and inside[0] <= page and page + PAGE - 1 <= inside[-1]:
                expected[BEFORE + page : BEFORE + page + PAGE] = 0
    assert np.array_equal(everything, expected)
