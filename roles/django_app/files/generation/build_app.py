"""Checks that an app imports and Gunicorn takes its configuration, collects and compresses its static files, and prints what it found.

Runs as the build user, with the app's own Python, in the source's directory. The last line of the output is JSON:
{"migrations": {"<app label>": ["<name>", ...]}}. Exits with 1 and three lines on the first thing that is wrong.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import gzip
import importlib
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

# Texts that shrink; images, fonts and archives are compressed already.
COMPRESSED_SUFFIXES = frozenset(
    {".css", ".html", ".js", ".json", ".map", ".mjs", ".svg", ".txt", ".wasm", ".webmanifest", ".xml"}
)

# A smaller file fits one packet either way.
SMALLEST_COMPRESSED_BYTES = 1024


def stop(what: str, remedy: str) -> None:
    """Print the exception at hand, what failed and what to do, and exit."""
    traceback.print_exc()
    sys.exit(f"{what}\n{remedy}")


def import_application(name: str, variable: str) -> None:
    """Import module:attribute as a server will; exits when it can't be."""
    module, _, attribute = name.partition(":")
    try:
        application = getattr(importlib.import_module(module), attribute)
    except Exception:
        stop(
            f"{variable}: '{name}' does not import.",
            f"Correct {variable}, or the error above; it must import with the app's environment and without its secrets' values.",
        )
    if not callable(application):
        sys.exit(f"{variable}: '{name}' is no application: {application!r} can't be called.\nCorrect {variable}.")


def check_gunicorn(command: list[str]) -> None:
    """Call Gunicorn's own check of its configuration, `gunicorn --check-config ...`; exits when that fails.

    In this process, which has the app loaded: in one of its own the check would load it once more.
    """
    sys.argv = command
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_module("gunicorn", run_name="__main__")
    except SystemExit as ending:
        if ending.code:
            raise


def compress(directory: Path) -> int:
    """Write name.gz beside each text that gets smaller by it; returns how many there are."""
    count = 0
    for path in sorted(directory.rglob("*")):
        if (
            path.suffix not in COMPRESSED_SUFFIXES
            or not path.is_file()
            or path.stat().st_size < SMALLEST_COMPRESSED_BYTES
        ):
            continue
        content = path.read_bytes()
        compressed = gzip.compress(content, compresslevel=9, mtime=0)
        if len(compressed) < len(content):
            path.with_name(f"{path.name}.gz").write_bytes(compressed)
            count += 1
    return count


def collect_static(directory: Path) -> None:
    """Run Django's collectstatic into the directory; exits when the app collects elsewhere or not at all."""
    from django.conf import settings
    from django.core.management import call_command

    if Path(settings.STATIC_ROOT or "").resolve() != directory.resolve():
        sys.exit(
            f"STATIC_ROOT: the settings collect static files in '{settings.STATIC_ROOT}', not in '{directory}'.\n"
            "Write STATIC_ROOT = os.environ['STATIC_ROOT'] in the settings, or set static_url to '' for an app without static files."
        )
    try:
        call_command("collectstatic", interactive=False, verbosity=1)
    except Exception:
        stop("collectstatic failed.", "Correct the error above.")
    print(f"{compress(directory)} static files compressed")


def migrations() -> dict[str, list[str]]:
    """Return the names of all migrations in the code by app label."""
    from django.db.migrations.loader import MigrationLoader

    found: dict[str, list[str]] = {}
    for label, name in sorted(MigrationLoader(None, ignore_no_migrations=True).disk_migrations):
        found.setdefault(label, []).append(name)
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wsgi", required=True)
    parser.add_argument("--asgi")
    parser.add_argument("--collect-static", action="store_true")
    parser.add_argument("--gunicorn", nargs=argparse.REMAINDER, help="the check of Gunicorn's configuration")
    arguments = parser.parse_args()

    sys.path.insert(0, str(Path.cwd()))
    # Bytecode in the sealed source: the first answer comes in less than half the time.
    compileall.compile_dir(".", quiet=2)
    try:
        import django

        django.setup()
    except Exception:
        stop(
            f"settings_module: '{os.environ.get('DJANGO_SETTINGS_MODULE')}' does not set up Django.",
            "Correct settings_module, or the error above; settings must import with placeholders for the secrets' values.",
        )
    import_application(arguments.wsgi, "wsgi")
    if arguments.asgi:
        import_application(arguments.asgi, "asgi")
    if arguments.collect_static:
        collect_static(Path(os.environ["STATIC_ROOT"]))
    if arguments.gunicorn:
        check_gunicorn(["gunicorn", *arguments.gunicorn])
    print(json.dumps({"migrations": migrations()}))


if __name__ == "__main__":
    main()
