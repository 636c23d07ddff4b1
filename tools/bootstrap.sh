#!/usr/bin/env bash
# Makes .venv, or brings it up to date: the locked development dependencies, then this project, editable.
#
# Needs Python 3.11 or newer and nothing else. PYTHON=/path/to/python chooses the interpreter.
# A finished environment carries a stamp, so a second run ends at once. One that only lags behind
# the lock file is updated in place, because someone may be using it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/.bootstrap-stamp
wait_for_other_seconds=1200

say() { printf 'bootstrap: %s\n' "$*" >&2; }

die() {
    say "$1"
    shift
    printf '  %s\n' "$@" >&2
    exit 1
}

# A path on PATH proves little: version managers leave shims of interpreters that are not active.
is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local name
    for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
        if is_new_enough "$name"; then
            command -v "$name"
            return
        fi
    done
    die "there is no Python 3.11 or newer${PYTHON:+ at $PYTHON}." \
        "Debian and Ubuntu: apt install python3 python3-venv" \
        "Or name one: make PYTHON=/path/to/python3.12 venv"
}

# pyproject.toml is part of it for the entry points; the directory because scripts hold its path.
wanted_stamp() {
    printf '%s\n' "$PWD"
    cat requirements-dev.lock pyproject.toml | cksum
    "$venv/bin/python" -c 'import sys; print(sys.version)'
}

is_current() {
    [ -f "$stamp" ] && [ "$(wanted_stamp 2>/dev/null)" = "$(cat "$stamp")" ]
}

# An environment of a deleted interpreter, without pip, or moved from another directory is of no use.
is_usable() {
    is_new_enough "$venv/bin/python" &&
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 &&
        { [ ! -f "$stamp" ] || [ "$(head -n 1 "$stamp")" = "$PWD" ]; }
}

make_venv() {
    local python
    python=$(find_python)
    rm -rf "$venv"
    say "making $venv with $python ($("$python" --version))"
    # Debian's Python has the module venv, but fails here without the package python3-venv.
    "$python" -m venv "$venv" >/dev/null 2>&1 && return
    rm -rf "$venv"
    if "$python" -m virtualenv --version >/dev/null 2>&1; then
        "$python" -m virtualenv --quiet "$venv"
    elif command -v virtualenv >/dev/null; then
        virtualenv --quiet --python "$python" "$venv"
    elif command -v uv >/dev/null; then
        uv venv --quiet --seed --python "$python" "$venv"
    else
        die "$python cannot make a virtual environment: it lacks ensurepip." \
            "Debian and Ubuntu: apt install python3-venv" \
            "Elsewhere: install virtualenv or uv, and run this again."
    fi
}

install() {
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
    say "installing requirements-dev.lock"
    "${pip[@]}" install --quiet --require-hashes --only-binary :all: -r requirements-dev.lock
    "${pip[@]}" install --quiet --no-build-isolation --no-deps --editable .
}

# Somebody's global pip settings must not send the packages past the environment.
unset PIP_USER PIP_TARGET PIP_PREFIX PYTHONHOME PYTHONPATH

if is_current; then
    exit 0
fi
if command -v flock >/dev/null; then
    exec 9<.
    flock --wait "$wait_for_other_seconds" 9 || die "another bootstrap holds this checkout for too long."
    if is_current; then
        exit 0
    fi
fi
begun=$SECONDS
rm -f "$stamp.new"
is_usable || make_venv
install
wanted_stamp >"$stamp.new"
mv "$stamp.new" "$stamp"
say "$venv is ready ($((SECONDS - begun)) s)"
