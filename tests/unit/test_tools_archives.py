"""Bytecode of archives, which furnished test hosts keep: nothing but the time may differ."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from rendering import ROOT

TEXT = "def where():\n    return where.__code__.co_filename\n\nSAID = 'one'\n"


@dataclass(frozen=True)
class Importer:
    """Starts a Python that keeps bytecode in a directory, and imports from archives."""

    folder: Path

    @property
    def kept(self) -> Path:
        return self.folder / "kept"

    def start(self, archive: str, text: str, expression: str = "module.SAID") -> str:
        """Make an archive with a module of that text; returns what an expression gives after its import."""
        path = self.folder / archive
        with zipfile.ZipFile(path, "w") as packed:
            packed.writestr("module.py", text)
        script = (
            "import sys; tools, kept, archive = sys.argv[1:]; sys.path.insert(0, tools); import archives; archives.keep(kept);"
            f" sys.path.insert(0, archive); import module; print({expression})"
        )
        command = [sys.executable, "-c", script, str(ROOT / "tools"), str(self.kept), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or done.stderr


@pytest.fixture
def importer(tmp_path: Path) -> Importer:
    (tmp_path / "kept").mkdir()
    return Importer(tmp_path)


def test_a_text_is_compiled_once(importer: Importer) -> None:
    assert importer.start("one.zip", TEXT) == "one"
    (kept,) = importer.kept.iterdir()
    first = kept.stat()
    assert importer.start("two.zip", TEXT) == "one"
    assert [(one, one.stat().st_mtime_ns, one.stat().st_ino) for one in importer.kept.iterdir()] == [
        (kept, first.st_mtime_ns, first.st_ino)
    ]
    # What is kept is what runs.
    importer.start("other.zip", TEXT.replace("one", "two"))
    (other,) = set(importer.kept.iterdir()) - {kept}
    other.replace(kept)
    assert importer.start("three.zip", TEXT) == "two"


def test_another_text_is_another_module(importer: Importer) -> None:
    assert importer.start("one.zip", TEXT) == "one"
    assert importer.start("one.zip", TEXT.replace("one", "two")) == "two"


def test_a_traceback_names_the_archive_of_its_own_task(importer: Importer) -> None:
    for archive in ("one.zip", "two.zip"):
        assert importer.start(archive, TEXT, "module.where()") == str(importer.folder / archive / "module.py")


def test_what_cannot_be_compiled_is_told_as_ever(importer: Importer) -> None:
    for _ in range(2):
        assert "SyntaxError" in importer.start("one.zip", "def")
    assert not list(importer.kept.iterdir())


def test_who_may_not_use_the_directory_compiles(importer: Importer) -> None:
    importer.kept.rmdir()
    for _ in range(2):
        assert importer.start("one.zip", TEXT) == "one"
    assert not importer.kept.exists()
