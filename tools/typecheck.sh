#!/bin/sh
# mypy --strict (Ansible's untyped base classes aside) on the Python of tools, plugins, roles, tests and benchmarks: one directory at a time,
# as a module and its action plugin share a name. Commands on hosts have no .py in their name; their first line tells that they are Python.
# Without sample_app, as Django's types need a plugin of mypy that imports the app's settings.
set -eu
cd "$(dirname "$0")/.."
MYPYPATH=$(printf '%s:' tests/site tests/unit tools roles/*/files roles/*/files/*/)
export MYPYPATH
status=0

for directory in tools plugins/* roles/*/files tests/unit tests/site benchmarks; do
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
