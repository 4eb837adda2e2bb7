"""The benchmarks of speed, one after the other: `python -m benchmarks --photos FOLDER`.

`benchmarks.cold` measures a disk as well, `benchmarks.reliability` and `benchmarks.ffcv_tests` no
speed at all; they are run by themselves.
"""

import subprocess
import sys

from resnet_ffcv.commandline import console

NAMES = ("decoders", "augment", "writing")

if __name__ == "__main__":
    for name in NAMES:
        console.print(f"python -m benchmarks.{name} {' '.join(sys.argv[1:])}".strip())
        code = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *sys.argv[1:]]
        ).returncode
        if code:
            raise SystemExit(code)
