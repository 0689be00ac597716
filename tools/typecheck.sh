#!/bin/sh
# mypy --strict (Ansible's untyped base classes aside) on the Python of tools, plugins and roles: one directory at a time, as a module and its action plugin
# share a name. Commands on hosts have no .py in their name; their first line tells that they are Python.
set -eu
cd "$(dirname "$0")/.."
MYPYPATH=$(printf '%s:' tools roles/*/files roles/*/files/*/)
export MYPYPATH
status=0

for directory in tools plugins/* roles/*/files; do
    sources=$(
        find "$directory" -type f -name '*.py'
        find "$directory" -type f ! -name '*.*' -exec sh -c 'head -n 1 "$1" | grep -q "^#!.*python"' _ {} \; -print
    )
    if [ -n "$sources" ]; then
        printf '%s: ' "$directory"
        # shellcheck disable=SC2086  # a list of files without blanks in their names
        .venv/bin/mypy --strict --allow-subclassing-any --scripts-are-modules $sources || status=1
    fi
done
exit "$status"
