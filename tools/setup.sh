#!/usr/bin/env bash
# Makes .venv: Debian packages where they are missing, everything of requirements.lock, and this package.
# Run it by `make setup`; `make setup PYTHON=python3.12` names the Python, which is kept from then on. Where
# nothing has changed since it last finished nothing is done; after a failure or a kill it starts over.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=.venv
STAMP=$VENV/.setup-done # written last: a hash of what .venv was made from, and the Python that made it
LOG=$VENV/setup.log
LIBRARIES='libopencv-core-dev libopencv-imgproc-dev libturbojpeg0-dev pkg-config g++'

CLEAR=$([ ! -t 2 ] || printf '\r\033[K')
say() { printf '%ssetup: %s\n' "$CLEAR" "$*" >&2; }
fail() { say "$@"; exit 1; }

# Sets python (the executable), version (3.11), prefix and include of the Python that is asked for: by
# PYTHON, by the last set-up, or python3. That of an environment counts as the one which made it.
find_python() {
    local another='name another: make setup PYTHON=python3.12' recorded facts oldest end
    recorded=$(sed -n 2p $STAMP 2>/dev/null || true)
    python=${PYTHON:-$(command -v "$recorded" || echo python3)}
    facts=$("$python" -c 'import sys, sysconfig
print(getattr(sys, "_base_executable", sys.executable))
print("%d.%d" % sys.version_info[:2])
print(getattr(sys, "base_prefix", sys.prefix))
print(sysconfig.get_path("include"))' 2>/dev/null) || fail "cannot run $python. Install Python 3.11 or newer, or $another"
    { read -r python; read -r version; read -r prefix; read -r include; } <<<"$facts"
    read -r oldest end < <(sed -n 's/^requires-python = ">=3\.\(.*\),<3\.\(.*\)"/\1 \2/p' pyproject.toml)
    [[ $version = 3.* && ${version#3.} -ge $oldest ]] ||
        fail "$python is Python $version, and 3.$oldest or newer is needed; $another"
    [ "${version#3.}" -lt "$end" ] ||
        fail "$python is Python $version, and PyTorch is not yet built for it; $another"
}

# What a finished set-up depends on. The folder belongs to it: a .venv cannot be moved.
fingerprint() {
    { pwd -P; echo "$version $prefix $(uname -m)"; grep -s '^VERSION_ID' /etc/os-release || true
      cat requirements.lock tools/setup.sh; } | sha256sum
}

# Runs a command with its output in the log. Shows what it is at: on a terminal a line that changes,
# elsewhere one every 20 seconds.
logged() {
    local began=$SECONDS said=$SECONDS status piece line='' now=''
    printf '$ %s\n' "$*" >>$LOG
    exec 3< <(exec "$@" 2>&1 </dev/null)
    job=$!
    while status=0; IFS= read -r -t 2 -u 3 piece || status=$?; line+=$piece; [ $status = 0 ] || [ $status -gt 128 ]; do
        if [ $status = 0 ]; then
            printf '%s\n' "$line" >>$LOG
            case $line in
                *Collecting*|*Downloading*|*Processing*|*Building*|*Installing*|Get:*|Unpacking*|'Setting up'*)
                    now=$(sed -E 's/^ *//; s/ \(from .*//; s/(packages): .*/\1/' <<<"$line") ;;
            esac
            line=''
        fi
        if [ -n "$CLEAR" ]; then
            printf '%ssetup: %.60s (%d s)' "$CLEAR" "$now" $((SECONDS - began)) >&2
        elif [ $((SECONDS - said)) -ge 20 ]; then
            said=$SECONDS
            say "    ${now:-still at it} ($((SECONDS - began)) s)"
        fi
    done
    wait $job
}

# Why the last command of the log failed, in a line.
cause() {
    local output
    output=$(sed -n 'H; /^\$ /h; ${x; p}' $LOG)
    if grep -qiE 'no space left|enough free space' <<<"$output"; then
        echo 'no space left on the disk; all of it wants some 10 GB. Make room, then run make setup again'
    elif grep -qE 'connection broken|ConnectionError|Could not resolve|Temporary failure|timed out' <<<"$output"; then
        echo "no connection to where packages come from. Mend it, then run make setup again"
    else
        local said
        said=$(grep -E '^ *(ERROR|Error|error|E):' <<<"$output" | tail -1 | sed 's/^ *//') || true
        echo "${said:-it ended without a word}; all that was printed is in $VENV/setup.log"
    fi
}

# ffcv's build asks pkg-config for all of OpenCV and includes <opencv2/opencv.hpp>, but links only core
# and imgproc. These two files, in the folder $1, stand for the whole: 14 packages instead of about 200.
write_opencv_stand_in() {
    local root=/usr
    [ ! -d "${CONDA_PREFIX:-}/include/opencv4" ] || root=$CONDA_PREFIX
    mkdir -p "$1/opencv2"
    printf '#include <opencv2/core.hpp>\n#include <opencv2/imgproc.hpp>\n' >"$1/opencv2/opencv.hpp"
    cat >"$1/opencv4.pc" <<PC
Name: opencv4
Description: core and imgproc of OpenCV, which is all that ffcv links
Version: 4
Libs: -L$root/lib -lopencv_imgproc -lopencv_core
Cflags: -I$1 -I$root/include/opencv4
PC
}

# Succeeds where ffcv's C++ file would compile: compiler, and the headers of OpenCV and turbojpeg.
can_build_ffcv() {
    local flags
    flags=$(pkg-config --cflags opencv4 libturbojpeg 2>/dev/null) &&
        printf '#include <opencv2/opencv.hpp>\n#include <turbojpeg.h>\n' |
        ${CXX:-g++} -x c++ -fsyntax-only $flags - 2>/dev/null
}

# Prints the Debian packages that are missing: libraries, and what Debian keeps apart from its Python.
missing_packages() {
    can_build_ffcv || printf '%s ' "$LIBRARIES"
    [ "$prefix" = /usr ] || return 0
    [ -f "$include/Python.h" ] || printf 'python%s-dev ' "$version"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || printf 'python%s-venv ' "$version"
}

# Ends where the packages named cannot be installed from here.
check_installable() {
    local hint="Run this first, then make setup again:
  Debian, Ubuntu:  apt-get install --no-install-recommends $*
  conda-forge:     conda install -c conda-forge libopencv libjpeg-turbo pkg-config cxx-compiler"
    command -v apt-get >/dev/null || fail "libraries are missing, and there is no apt-get here. $hint"
    [ "$(id -u)" = 0 ] || fail "libraries are missing, and only root can install them. $hint"
}

# --fix-broken: an earlier installation may have been killed half-way.
install_packages() {
    say "installing Debian packages: $*"
    logged apt-get update -q || say "apt-get update: $(cause)"
    logged dpkg --configure -a || true
    logged env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --fix-broken --no-install-recommends \
        -o DPkg::Lock::Timeout=300 "$@" || fail "apt-get cannot install them: $(cause)"
}

pip_install() {
    logged $VENV/bin/python -m pip --disable-pip-version-check install --no-deps "$@"
}

# --no-deps: the lock file is complete, and ffcv's own list would bring GUI libraries. --no-cache-dir: a
# wheel of ffcv that lies in pip's cache may be linked to libraries that are not here.
install_python_packages() {
    say "making $VENV with $python (Python $version)"
    logged "$python" -m venv $VENV || fail "$python cannot make an environment: $(cause)"
    say 'installing the packages of requirements.lock; PyTorch and CUDA are several GB'
    grep -v '^ffcv==' requirements.lock >"$TMPDIR"/requirements.txt
    pip_install -r "$TMPDIR"/requirements.txt || fail "pip cannot install them: $(cause)"
    say 'building ffcv'
    pip_install --no-cache-dir --no-build-isolation --use-pep517 "$(grep '^ffcv==' requirements.lock)" ||
        fail "ffcv cannot be built: $(cause)"
    pip_install --no-build-isolation --use-pep517 --editable . || fail "resnet-ffcv cannot be installed: $(cause)"
    logged $VENV/bin/python -c 'import ffcv, resnet_ffcv' || fail "ffcv cannot be imported: $(cause)"
}

[ "$(uname -s)" = Linux ] || fail "FFCV is for Linux, and this is $(uname -s)"
find_python
wanted=$(fingerprint)
[ "$(sed -n 1p $STAMP 2>/dev/null)" != "$wanted" ] || [ ! -x $VENV/bin/python ] || exit 0

exec 9<tools/setup.sh # one set-up at a time
flock -n 9 || { say 'waiting for another set-up to finish'; flock 9; exec tools/setup.sh; }

job='' stand_in=$(mktemp -d)
trap 'rm -rf "$stand_in"' EXIT
trap '[ -z "$job" ] || kill $job 2>/dev/null || true; say "stopped; the next make setup starts over"; exit 130' INT TERM HUP
write_opencv_stand_in "$stand_in"
export PKG_CONFIG_PATH="$stand_in${PKG_CONFIG_PATH:+:$PKG_CONFIG_PATH}"
read -ra missing < <(missing_packages) || true
[ ${#missing[@]} = 0 ] || check_installable "${missing[@]}"

# pip's temporary files lie in .venv too: /tmp may be small, and what a kill leaves goes with the rest.
export TMPDIR=$PWD/$VENV/tmp
mkdir -p $VENV && find -H $VENV -mindepth 1 -delete && mkdir "$TMPDIR" && : >$LOG || fail "cannot write $PWD/$VENV"
[ ${#missing[@]} = 0 ] || install_packages "${missing[@]}"
can_build_ffcv || fail "the libraries are here, but their headers do not compile with ${CXX:-g++}"
install_python_packages
rm -rf "$TMPDIR"
printf '%s\n' "$wanted" "$python" >$STAMP || fail "cannot write $PWD/$STAMP"
say "done: $VENV"
