#!/usr/bin/env bash
# Makes .venv: Debian packages where they are missing, everything of requirements.lock, and this package.
# Run it by `make setup`. Nothing is done where nothing has changed since the last run.
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3}
VENV=.venv
STAMP=$VENV/.setup-done
LIBRARIES='libopencv-core-dev libopencv-imgproc-dev libturbojpeg0-dev pkg-config g++'

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

# What a finished set-up depends on. The folder belongs to it: a .venv cannot be moved.
fingerprint() {
    { pwd; "$PYTHON" -VV; cat requirements.lock tools/setup.sh; } | sha256sum
}

# ffcv's build asks pkg-config for all of OpenCV and includes <opencv2/opencv.hpp>, but links only core
# and imgproc. These two files, in the folder $1, stand for the whole: 14 packages instead of about 200.
write_opencv_stand_in() {
    mkdir -p "$1/opencv2"
    printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$1/opencv2/opencv.hpp"
    local include=/usr/include/opencv4
    [ -d "$include" ] || include=${CONDA_PREFIX:-/usr}/include/opencv4
    cat >"$1/opencv4.pc" <<PC
Name: opencv4
Description: core and imgproc of OpenCV, which is all that ffcv links
Version: 4
Libs: ${CONDA_PREFIX:+-L$CONDA_PREFIX/lib }-lopencv_imgproc -lopencv_core
Cflags: -I$1 -I$include
PC
}

# Succeeds where ffcv's C++ file would compile: compiler, Python's, OpenCV's and turbojpeg's headers.
can_build_ffcv() {
    command -v g++ >/dev/null && command -v pkg-config >/dev/null && pkg-config --exists libturbojpeg &&
        printf '#include <Python.h>\n#include <opencv2/opencv.hpp>\n#include <turbojpeg.h>\n' |
        g++ -x c++ -fsyntax-only -I"$1" -I/usr/include/opencv4 ${CONDA_PREFIX:+-I$CONDA_PREFIX/include/opencv4} \
            $(pkg-config --cflags libturbojpeg) \
            "-I$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')" - 2>/dev/null
}

install_libraries() {
    local packages=$LIBRARIES
    [ "$("$PYTHON" -c 'import sys; print(sys.prefix)')" != /usr ] || packages="$packages python3-dev"
    local hint="install them yourself and run make setup again:
  Debian, Ubuntu:  apt-get install --no-install-recommends $packages
  conda-forge:     conda install -c conda-forge libopencv libjpeg-turbo pkg-config cxx-compiler"
    command -v apt-get >/dev/null || fail "ffcv needs libraries that are missing, and there is no apt-get; $hint"
    [ "$(id -u)" = 0 ] || fail "ffcv needs libraries that are missing, and only root can install them; $hint"
    say "installing Debian packages: $packages"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null ||
        fail "apt-get could not install the libraries; $hint"
}

command -v "$PYTHON" >/dev/null || fail "no $PYTHON here; install Python 3.11 or newer, or name one: make setup PYTHON=python3.12"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$PYTHON" -V) is too old; name a Python 3.11 or newer: make setup PYTHON=python3.12"

wanted=$(fingerprint)
[ "$(cat $STAMP 2>/dev/null)" != "$wanted" ] || exit 0

stand_in=$(mktemp -d)
trap 'rm -rf "$stand_in"' EXIT
write_opencv_stand_in "$stand_in"
can_build_ffcv "$stand_in" || install_libraries
can_build_ffcv "$stand_in" || fail "the libraries are installed, but their headers cannot be compiled against with $(command -v g++)"

say "making $VENV with $("$PYTHON" -V) (PyTorch and what it needs are several GB)"
rm -f $STAMP
"$PYTHON" -m venv --clear $VENV || fail "Python cannot make a virtual environment; Debian, Ubuntu: apt-get install python3-venv"
pip="$VENV/bin/python -m pip --disable-pip-version-check --quiet"
# --no-deps: the lock file is complete, and ffcv's own list would bring GUI libraries.
grep -v '^ffcv==' requirements.lock >"$stand_in/requirements.txt"
$pip install --no-deps -r "$stand_in/requirements.txt"
say 'building ffcv'
PKG_CONFIG_PATH="$stand_in${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}" \
    $pip install --no-deps --no-build-isolation --use-pep517 "$(grep '^ffcv==' requirements.lock)"
$pip install --no-deps --no-build-isolation --use-pep517 --editable .
$VENV/bin/python -c 'import ffcv, resnet_ffcv' || fail 'the installed packages cannot be imported; see above'
printf '%s\n' "$wanted" >$STAMP
say "done: $VENV"
