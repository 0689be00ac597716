#!/bin/sh
# Make .venv: by Python's own venv, uv by pip, and the tools of requirements-dev.txt by uv.
# PYTHON names another interpreter than python3.
set -eu
cd "$(dirname "$0")/.."

say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n%s\n' "$1" "$2" >&2; exit 1; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null 2>&1 ||
    fail "There is no $python on this machine." "Install Python 3.11 or newer (Debian: apt-get install python3), then start again."
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$("$python" --version) is too old: Python 3.11 or newer is needed." "Install it and name it: make venv PYTHON=python3.13"

if ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    package="python3-venv"
    remedy="Install it by hand as root, then start again: apt-get install $package"
    command -v apt-get >/dev/null 2>&1 ||
        fail "$python has no venv module (Debian's package $package)." "Install it as your system does it, then start again."
    sudo=""
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null 2>&1 || fail "$python has no venv module, and there is no sudo to install it." "$remedy"
        sudo="sudo"
    fi
    say "Installing $package"
    { $sudo apt-get -q update && $sudo env DEBIAN_FRONTEND=noninteractive apt-get -q install -y --no-install-recommends "$package"; } ||
        fail "$package can't be installed." "$remedy"
fi

# An environment whose Python is gone (an upgrade of the system, a moved checkout) is made anew.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    say "Making .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
fi

# uv reads neither pip's variables nor pip.conf: it gets the user's index and certificates from here.
say "Installing uv into .venv"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(grep '^uv' requirements-dev.txt)" ||
    fail "pip can't install uv." "Check that this machine reaches PyPI or the index that 'pip config list' names, then start again."
index=${UV_DEFAULT_INDEX:-${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}}
if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
if [ -n "${PIP_CERT:-}" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE="$PIP_CERT"; fi

say "Installing the tools of requirements-dev.txt into .venv"
# Where Python may not write bytecode, each process of Ansible would compile all that it imports: a third of what a run costs.
UV_SYSTEM_CERTS=1 .venv/bin/uv pip install --compile-bytecode --python .venv/bin/python -r requirements-dev.txt ||
    fail "uv can't install the tools." "Read its message above, mend the cause, then start again: make venv"

packages=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cp tools/templates.py "$packages/quintet_templates.py"
echo "import quintet_templates; quintet_templates.keep('$PWD')" >"$packages/quintet_templates.pth"

# Molecule and ansible-lint look for ansible's commands on the PATH only. With this, .venv/bin/molecule works by itself.
cat >"$packages/quintet_path.pth" <<'EOF'
import os, sys; b = os.path.join(sys.prefix, "bin"); p = os.environ.get("PATH", os.defpath); os.environ["PATH"] = p if b in p.split(os.pathsep) else b + os.pathsep + p
EOF
touch .venv/.ready
say "The tools are in .venv/bin"
