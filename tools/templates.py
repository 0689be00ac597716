"""Keep the bytecode of Jinja's templates for later runs of Ansible, as Python itself does for files.

Each task of Ansible is a process of its own for each host: it compiles all templates that it comes upon, some fifteen, and looks for
garbage in all that it has of its parent. Both together were 30 of the 72 s of CPU that the controller spent on `site.yml` with nothing
to do on two hosts. `.venv` has this (venv.sh); nothing may depend on it, and no user's Ansible has it.
"""

from __future__ import annotations

import gc
import importlib.abc
import importlib.util
import marshal
import os
import sys
from collections.abc import Sequence
from hashlib import blake2b
from importlib.machinery import ModuleSpec
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

TEMPLATING = "ansible._internal._templating._jinja_bits"
# What decides what is compiled, besides the text.
SETTINGS = (
    *("block_start_string", "block_end_string", "variable_start_string", "variable_end_string", "comment_start_string"),
    *("comment_end_string", "line_statement_prefix", "line_comment_prefix", "trim_blocks", "lstrip_blocks"),
    *("newline_sequence", "keep_trailing_newline", "optimized"),
)


class Keeper:
    """Bytecode in a directory, by all that it was compiled of."""

    def __init__(self, directory: Path, plugins: Path) -> None:
        self.directory = directory
        # A filter of a constant is computed while compiling: bytecode is good for the plugins that there were.
        files = sorted(plugins.rglob("*.py"))
        self.plugins = [(str(file), file.stat().st_mtime_ns) for file in files]

    def file(self, *parts: object) -> Path:
        """Return where the bytecode of what has these parts is."""
        text = repr((*parts, self.plugins)).encode()
        return self.directory / blake2b(MAGIC_NUMBER + text, digest_size=16).hexdigest()

    def get(self, file: Path) -> CodeType | None:
        """Return kept bytecode, or None when there is none that is whole."""
        try:
            code: CodeType = marshal.loads(file.read_bytes())  # noqa: S302  (the checkout's own)
        except (OSError, EOFError, ValueError, TypeError):
            return None
        return code

    def put(self, file: Path, code: CodeType) -> None:
        """Keep bytecode, whole or not at all, since other tasks run at the same time."""
        new = file.with_suffix(f".{os.getpid()}")
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            new.write_bytes(marshal.dumps(code))
            new.replace(file)
        except OSError:
            pass


def patch(bits: Any, keeper: Keeper) -> None:
    """Let Ansible's environment of Jinja look for kept bytecode first; `bits` is Ansible's module with it."""
    from ansible.release import __version__ as ansible
    from jinja2 import __version__ as jinja

    environment = bits.AnsibleEnvironment
    compile_source = environment.compile

    def compiled(self: Any, source: Any, *arguments: Any, **options: Any) -> Any:
        # Conditions come as trees, which are few.
        if not isinstance(source, str):
            return compile_source(self, source, *arguments, **options)
        context = bits._TemplateCompileContext.current(optional=True)
        settings = [getattr(self, name) for name in SETTINGS]
        file = keeper.file(
            ansible, jinja, str(source), arguments, options, settings, context and context.escape_backslashes
        )
        code = keeper.get(file)
        if code is None:
            code = compile_source(self, source, *arguments, **options)
            keeper.put(file, code)
        return code

    environment.compile = compiled


class Finder(importlib.abc.MetaPathFinder):
    """Patches Ansible's templating as soon as it is imported: nothing else in .venv is to pay for it."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the module's own spec, with one more thing to do after it was executed."""
        if name != TEMPLATING:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader: Any = spec and spec.loader
        execute = loader.exec_module

        def execute_and_patch(module: ModuleType) -> None:
            execute(module)
            gc.set_threshold(100_000, 50, 50)
            patch(module, Keeper(self.checkout / ".cache/templates", self.checkout / "plugins"))

        loader.exec_module = execute_and_patch
        return spec


def keep(checkout: str) -> None:
    """Keep what this checkout's runs of Ansible compile below its .cache."""
    sys.meta_path.insert(0, Finder(Path(checkout)))
