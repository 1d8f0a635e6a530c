#!/usr/bin/env bash
# Make the run's virtual environment: environment.sh yes|no [PACKAGE...] (yes: may install programs
# by sudo). Runs in the run's folder code/ as a job; may be run again after any interruption.
set -euo pipefail
may_install=$1
shift

usable_python() {
    for name in python3.14 python3.13 python3.12 python3.11 python3; do
        if "$name" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    return 1
}

if [ "$may_install" = yes ] && command -v dnf >/dev/null; then  # Amazon Linux
    usable_python >/dev/null || sudo dnf install -y python3.11
    # A C++ compiler makes training faster, but is not needed.
    command -v c++ >/dev/null || sudo dnf install -y gcc-c++ || echo "no C++ compiler"
fi
if ! python=$(usable_python); then
    echo "expected Python 3.11 or newer with its venv module, found $(python3 --version 2>&1)"
    exit 2
fi
echo "$python: $("$python" --version)"
"$python" -m venv ../venv
# No bytecode: most modules are never imported.
../venv/bin/python -m pip install --no-compile --constraint ../constraints.txt --editable . "$@"
