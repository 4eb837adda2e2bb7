"""The same bits from every instruction set: AVX-512, AVX2, SSE2, as far as this CPU has them."""

import os
import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

PROGRAM = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
import numpy as np
import test_dct, test_jpeg, test_raw, test_yuv420
from images import draw_image, draw_size, draw_window
from resnet_ffcv.kernels import changes
from resnet_ffcv.kernels.compiling import target

rng, quality = np.random.default_rng(0), test_dct.Quality(90)
digest = hashlib.sha256()
for case in range(60):
    shape, size = draw_size(rng, 150), draw_size(rng)
    image, window, colour = draw_image(rng, *shape), draw_window(rng, *shape), case % 2
    filter_ = case % 3
    dct, yuv = test_dct.encode(image, colour, quality), test_yuv420.encode(image, colour)
    digest.update(dct.tobytes() + yuv.tobytes())
    for status, pixels in (
        test_dct.decode(dct, shape, colour, quality, window, filter_, size),
        test_yuv420.decode(yuv, shape, colour, window, filter_, size),
        test_jpeg.decode(
            test_jpeg.save(test_jpeg.smooth(rng, shape), "4:2:0"), shape, window, filter_, size
        ),
        (0, test_raw.run(image, window, filter_, size)),
    ):
        assert status == 0
        digest.update(pixels.tobytes())
kinds = [changes.BRIGHTNESS, changes.CONTRAST, changes.AUTOCONTRAST, changes.EQUALIZE,
         changes.SATURATION, changes.HUE, changes.GRAYSCALE, changes.SHARPNESS, changes.SHEAR_X,
         changes.ROTATE, changes.MIRROR]
for kind in kinds:
    images, numbers = rng.integers(0, 256, (8, 37, 41, 3), np.uint8), np.zeros((8, 1, 4))
    numbers[:, 0, 0] = rng.uniform(-0.5, 0.5, 8)
    changes.change_images(images, np.full((8, 1), kind, np.int32), numbers, (1, 2, 3))
    digest.update(images.tobytes())
print(digest.hexdigest(), target()[2].count("+"))
"""
AVX2 = (
    "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+popcnt,+avx,+avx2,+bmi,+bmi2,+fma,+f16c,+lzcnt,+movbe"
)


def run(**environment: str) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(Path(__file__).parent)],
        env={**os.environ, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    digest, features = done.stdout.split()
    return digest, features


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 instruction sets")
def test_every_build_gives_the_same_bits() -> None:
    builds = [{}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}]
    if "avx2" in Path("/proc/cpuinfo").read_text():
        builds.append({"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": AVX2})
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda build: run(**build), builds))
    digests, features = zip(*found, strict=True)
    assert features[1] != features[0], "both were built for the same instruction set"
    assert set(digests) == {digests[0]}
