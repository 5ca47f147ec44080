#!/bin/sh
# Makes .venv complete: the pinned packages of requirements/<cpu|cuda>.txt, then embcache itself.
# `make` calls this before every target; where nothing changed it answers in a fraction of a second
# and needs no network. POSIX sh and not Python, because finding a Python is its first task.
#
#   PYTHON=/path/to/python3.12    the Python to build .venv with     (default: the first that fits)
#   EMBCACHE_DEVICE=cpu|cuda      which set of packages               (default: by the GPU found)
set -u
cd "$(dirname "$0")/.." || exit 1

venv=.venv
python=$venv/bin/python
# Lines: place (path, device, Python), lock, project. Absent: never finished, or interrupted.
# Place alone: pip refused something, but what is there is sound and the next run goes on from it.
stamp=$venv/.embcache-setup
origins=$venv/.embcache-origins # where pip found each package
torch_index=https://download.pytorch.org/whl/cpu

say() { printf '%s\n' "$*"; }
fail() { printf '\nembcache set-up: ' >&2; printf '%s\n' "$@" >&2; exit 1; }

# ---- which Python, which device ---------------------------------------------------------------

# "3.12.1" for a Python that really runs (pyenv has shims that only print an error), else nothing.
version_of() {
    "$1" -c 'import platform as p; print(p.python_version() + " (not CPython)" * (p.python_implementation() != "CPython"))' 2>/dev/null
}

supported() {
    case $1 in *CPython*) false ;; 3.11.* | 3.12.* | 3.13.* | 3.14.*) true ;; *) false ;; esac
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        set -- "$PYTHON"
    else
        set -- python3 python3.13 python3.12 python3.11 python3.14 python \
            "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/3.1[1-4].*/bin/python
    fi
    seen=
    for base in "$@"; do
        version=$(version_of "$base")
        supported "$version" && return
        if [ -n "${PYTHON:-}" ] || command -v "$base" >/dev/null 2>&1; then
            seen="$seen
    $base: ${version:-does not run}"
        fi
    done
    fail "Python 3.11 to 3.14 (CPython) is needed. Found:${seen:- none}" \
        "Install one (Debian, Ubuntu: sudo apt install python3.12 python3.12-venv, or whichever of these" \
        "versions your release has; elsewhere pyenv or 'uv python install 3.12'), or name one:" \
        "    make PYTHON=/path/to/python3.12 ..."
}

# A device node, not only the driver: in a container the driver's /proc shows GPUs of the host.
has_nvidia_gpu() {
    { ls /proc/driver/nvidia/gpus/* && ls /dev/nvidia[0-9]*; } >/dev/null 2>&1 ||
        nvidia-smi -L 2>/dev/null | grep -q '^GPU'
}

case ${EMBCACHE_DEVICE:-} in
    cpu | cuda) device=$EMBCACHE_DEVICE ;;
    '') if has_nvidia_gpu; then device=cuda; else device=cpu; fi ;;
    *) fail "EMBCACHE_DEVICE is '$EMBCACHE_DEVICE'; it can be cpu or cuda." ;;
esac
lock=requirements/$device.txt

# ---- is .venv complete already? ---------------------------------------------------------------

place_of() { say "$(pwd -P) $device python${1%.*}"; }
lock_line="lock $(cksum <"$lock")" || fail "$lock cannot be read."
project_line="project $(cksum <pyproject.toml)" || fail "pyproject.toml cannot be read."

# Sets `have` to the number of stamp lines that still hold: 3 is complete, 0 means anew.
look() {
    have=0
    [ -f "$stamp" ] || return
    version=$(version_of "$python")
    if [ -n "${PYTHON:-}" ]; then # a named Python of another version wins over what is there
        asked=$(version_of "$PYTHON")
        [ "${asked%.*}" = "${version%.*}" ] || return
    fi
    { IFS= read -r line1; IFS= read -r line2; IFS= read -r line3; } <"$stamp"
    [ "$line1" = "$(place_of "$version")" ] || return
    have=1
    [ "$line2" = "$lock_line" ] || return
    have=2
    [ "$line3" = "$project_line" ] && have=3
}

line1='' line2='' line3=''
look
[ "$have" = 3 ] && exit 0

# One set-up at a time. The lock is on the folder itself, so no lock file can be left behind.
if command -v flock >/dev/null 2>&1; then
    exec 9<.
    flock -n 9 || { say "embcache: waiting for another set-up of this folder"; flock 9; }
    look
    [ "$have" = 3 ] && exit 0
fi

# ---- set it up --------------------------------------------------------------------------------

log=$(mktemp) || exit 1
trap 'rm -f "$log" "$log.report"' EXIT
# Without these, a shell whose pip ended "normally" on Ctrl-C would go on and leave a stamp.
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM

began=$(date +%s)
step() { printf '  %s ... ' "$*"; step_began=$(date +%s); }
ok() { say "$(($(date +%s) - step_began)) s"; }

# A source package needs a compiler, and its failure is hard to read, so none is let in. On aarch64
# one package (pytrec-eval-terrier) has no wheel.
case $(uname -m) in aarch64) binary= ;; *) binary='--only-binary=:all:' ;; esac

# --no-compile: Python compiles what is imported, which is far less than what is installed.
pip_install() {
    "$python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps \
        --no-compile $binary --report "$log.report" "$@" >>"$log" 2>&1 &&
        "$python" scripts/check_torch.py note "$log.report" "$origins" >>"$log" 2>&1
}

# pip_failed STATUS WHAT [FIX...]: say so, with pip's own words.
pip_failed() {
    # Killed (status over 128) or a full disk may have left a package half written; a refusal has not.
    [ "$1" -lt 128 ] && ! grep -q 'No space left' "$log" && say "$place" >"$stamp"
    what=$2
    shift 2
    say "failed"
    fail "$what" "pip's last lines:" \
        "$(grep -v 'Location .* is ignored' "$log" | awk '!seen[$0]++' | tail -n 4 | cut -c 1-250 | sed 's/^/    /')" "$@"
}

case $(uname -s)-$(uname -m) in
    Linux-x86_64 | Linux-aarch64) ;;
    *) fail "the pinned packages are for Linux on x86_64 or aarch64, this is $(uname -s) on $(uname -m)." \
        "Without them: python3 -m pip install --editable .   (the cache, but no engine)" ;;
esac

if [ "$have" = 0 ]; then
    find_python
    case $device in
        cpu) size='about 1 GB to download, 2 to 5 minutes' ;;
        cuda) size='several GB to download, 5 minutes or more' ;;
    esac
    say "embcache: setting up $venv with Python $version for $device ($size, once)"
    "$base" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$base ($version) has no venv module or no ensurepip." \
            "Debian, Ubuntu: sudo apt install python${version%.*}-venv" \
            "or name another Python: make PYTHON=/path/to/python3.12 ..."
    place=$(place_of "$version")
    [ -e "$venv" ] && say "  (the $venv that is there is unfinished, or of another Python, device or path: made anew)"
    step "virtual environment"
    rm -rf "$venv"
    "$base" -m venv "$venv" >"$log" 2>&1 ||
        fail "'$base -m venv $venv' failed:" "$(tail -n 5 "$log")"
    ok
else
    place=$line1
    say "embcache: bringing $venv up to date"
    rm -f "$stamp"
fi

if [ "$have" -lt 2 ]; then
    # torch+cpu is on PyTorch's index and not on PyPI. It goes first, since it is what can be missing.
    torch=$(sed -n 's/^\(torch==[^ ;]*+cpu\).*/\1/p' "$lock")
    if [ -n "$torch" ]; then
        step "$torch (about 180 MB)"
        : >"$log"
        status=0
        pip_install --retries 2 "$torch" || status=$?
        if [ $status -gt 0 ] && [ $status -lt 128 ]; then
            status=0
            pip_install --timeout 15 --retries 1 --index-url "$torch_index" "$torch" || status=$?
        fi
        [ $status = 0 ] || pip_failed $status \
            "$torch for Python ${version%.*} on $(uname -m) could not be had, neither from where pip is set up
to look nor from $torch_index." \
            "Once that index can be reached, or with a wheel from elsewhere, either of these does it:" \
            "    $python -m pip install --no-deps --index-url $torch_index $torch" \
            "    $python -m pip install --no-deps --find-links /folder/with/the/wheel $torch" \
            "then call make again; it goes on from there."
        ok
    fi
    step "$(grep -c '^[a-zA-Z0-9]' "$lock") packages of $lock"
    : >"$log"
    pip_install --requirement "$lock" || {
        status=$?
        package=$(sed -n 's/.*No matching distribution found for \([^ ]*\).*/\1/p' "$log" | tail -n 1)
        pip_failed $status "${package:-a package of $lock} could not be installed." \
            "If this machine is offline or behind a mirror, set pip up for it (pip config, PIP_INDEX_URL) and" \
            "call make again; it goes on from there. By hand, all of them:" \
            "    $python -m pip install --no-deps --requirement $lock"
    }
    ok
fi

# An index that has torch 2.13.0+cpu satisfies torch==2.13.0, and vllm for CUDA does not import then.
step "torch is for $device"
wrong=$("$python" scripts/check_torch.py check "$device" "$lock" "$origins" 2>"$log") || {
    say "$place" >"$stamp"
    [ -n "$wrong" ] && "$python" -m pip uninstall --quiet --yes $wrong >/dev/null 2>&1
    say "no"
    fail "$(cat "$log")"
}
ok

step "embcache itself (editable)"
: >"$log"
# --no-index and no build isolation: its build tools are in the lock, so this works offline.
"$python" -m pip install --quiet --disable-pip-version-check --no-input --no-deps --no-index \
    --no-build-isolation --editable . >"$log" 2>&1 ||
    pip_failed $? "embcache itself could not be installed from this folder."
ok

# Whether it works at all, and the bytecode of what is used: a shell may have PYTHONDONTWRITEBYTECODE
# set, and then every process would compile mteb, torch and vllm again, for 4 s and more.
step "first import"
env -u PYTHONDONTWRITEBYTECODE "$python" -W ignore -c '
import importlib.util
if importlib.util.find_spec("torchvision"): import torchvision
import embcache, lance, lancedb, mteb, pytest, sentence_transformers
from vllm import LLM' >"$log" 2>&1 ||
    fail "what was installed cannot be imported:" "$(tail -n 4 "$log" | cut -c 1-250)" \
        "Where pip found torch, and what is built for it:" \
        "$(grep -E '^"(torch|vllm)' "$origins" 2>/dev/null | cut -c 1-250)" \
        "Once what it names is mended, call make again; or begin anew: make distclean"
ok

printf '%s\n' "$place" "$lock_line" "$project_line" >"$stamp"
say "  done in $(($(date +%s) - began)) s: $venv, $(du -sh "$venv" 2>/dev/null | cut -f1)"
