"""Keep the bytecode of what Python imports from archives, as Python itself does for files.

A task of Ansible reaches its host as an archive of the module and of all that it imports, and the host compiles some fifty files
anew for each. A furnished test host has this in its system's Python (tools/hosts.py). Nothing may depend on it: the hosts of the
scenarios intruder and ssh are bare.
"""

from __future__ import annotations

import _imp
import marshal
import os
import zipimport
from hashlib import blake2b
from importlib.util import MAGIC_NUMBER
from types import CodeType


def keep(directory: str) -> None:
    """Keep it in a directory, by the text that was compiled; who may not read or write there compiles as before."""
    compile_source = zipimport._compile_source  # type: ignore[attr-defined]

    def compiled(path: str, source: bytes) -> CodeType:
        name = f"{directory}/{blake2b(MAGIC_NUMBER + source, digest_size=16).hexdigest()}"
        try:
            with open(name, "rb") as file:  # noqa: PTH123  (pathlib's import would cost each start of Python)
                code: CodeType = marshal.loads(file.read())  # noqa: S302  (only root writes there)
        except OSError:
            code = compile_source(path, source)
            store(name, code)
        else:
            # Its tracebacks are to name the archive of this task.
            _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]
        return code

    zipimport._compile_source = compiled  # type: ignore[attr-defined]


def store(name: str, code: CodeType) -> None:
    """Write bytecode, whole or not at all, since other tasks run at the same time."""
    new = f"{name}.{os.getpid()}"
    try:
        with open(new, "wb") as file:  # noqa: PTH123  (as above)
            file.write(marshal.dumps(code))
        os.replace(new, name)  # noqa: PTH105  (as above)
    except OSError:
        pass
