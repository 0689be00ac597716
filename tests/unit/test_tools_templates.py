"""Bytecode of templates, which .venv keeps: nothing but the time may differ."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from rendering import ROOT

# A Python without what .venv adds by itself, which would keep bytecode for the checkout.
SCRIPT = """
import json, sys
sys.meta_path[:] = [one for one in sys.meta_path if not type(one).__module__.endswith("templates")]
sys.path.insert(0, sys.argv[1])
import templates
templates.keep(sys.argv[2])
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
templar = Templar(DataLoader(), variables={"word": "here"})
said = {}
for kind, text in json.load(sys.stdin):
    try:
        if kind == "expression":
            said[text] = templar.evaluate_expression(trust_as_template(text))
        else:
            said[text] = templar.template(trust_as_template(text), escape_backslashes=kind == "escaped")
    except Exception as error:
        said[text] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""
TEXTS = [
    ("template", "{{ word }} and {{ [word, 1] | join('-') }}"),
    ("expression", "word ~ '!'"),
    ("expression", "{'word': word}"),
    ("expression", "word +"),
    ("expression", "nowhere"),
    ("template", "{{ nowhere.to_be }}"),
    ("template", "{% if word %}"),
]


@dataclass(frozen=True)
class Checkout:
    """A folder in whose name bytecode is kept."""

    folder: Path

    def ask(self, *texts: tuple[str, str]) -> dict[str, Any]:
        """Return what each text gives, in a process of its own."""
        command = [sys.executable, "-c", SCRIPT, str(ROOT / "tools"), str(self.folder)]
        done = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    @property
    def kept(self) -> dict[str, tuple[int, int]]:
        """Each file that is kept, and what shows that it is still the same."""
        files = (self.folder / ".cache/templates").iterdir()
        return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}

    def new(self, *texts: tuple[str, str]) -> Path:
        """Ask, and return the one file that came of it."""
        before = set(self.kept)
        self.ask(*texts)
        (name,) = set(self.kept) - before
        return self.folder / ".cache/templates" / name


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins/filter.py").write_text("")
    (tmp_path / ".cache/templates").mkdir(parents=True)
    return Checkout(tmp_path)


def test_kept_bytecode_says_what_the_text_says(checkout: Checkout) -> None:
    first = checkout.ask(*TEXTS)
    assert list(first.values())[:3] == ["here and here-1", "here!", {"word": "here"}]
    assert [str(said).split(":")[0] for said in list(first.values())[3:]] == [
        *(
            "AnsibleTemplateSyntaxError",
            "AnsibleUndefinedVariable",
            "AnsibleUndefinedVariable",
            "AnsibleTemplateSyntaxError",
        ),
    ]
    kept = checkout.kept
    # All that compiles, but for the conditions.
    assert len(kept) == 2
    assert checkout.ask(*TEXTS) == first
    assert checkout.kept == kept


def test_kept_bytecode_is_what_runs(checkout: Checkout) -> None:
    one, two = "{{ word }}1", "{{ word }}2"
    files = checkout.new(("template", one)), checkout.new(("template", two))
    assert checkout.ask(("template", one)) == {one: "here1"}
    files[1].replace(files[0])
    assert checkout.ask(("template", one)) == {one: "here2"}


def test_what_decides_how_a_text_is_compiled_is_part_of_it(checkout: Checkout) -> None:
    text = r"{{ 'a\\nb' }}"
    plain = checkout.ask(("template", text))[text]
    escaped = checkout.ask(("escaped", text))[text]
    assert plain != escaped
    assert (checkout.ask(("template", text))[text], checkout.ask(("escaped", text))[text]) == (plain, escaped)


def test_other_plugins_mean_other_bytecode(checkout: Checkout) -> None:
    checkout.ask(*TEXTS)
    before = checkout.kept
    (checkout.folder / "plugins/filter.py").write_text("# A filter may have computed a constant.\n")
    checkout.ask(*TEXTS)
    assert len(checkout.kept) == 2 * len(before)
    assert checkout.kept.items() >= before.items()


def test_what_is_kept_in_part_is_made_anew(checkout: Checkout) -> None:
    text = ("template", "{{ word }}1")
    file = checkout.new(text)
    whole = file.read_bytes()
    for part in (b"", whole[:40], b"nonsense"):
        file.write_bytes(part)
        assert checkout.ask(text) == {"{{ word }}1": "here1"}
        assert file.read_bytes() == whole


def test_where_nothing_can_be_kept_all_goes_on(checkout: Checkout) -> None:
    kept = checkout.folder / ".cache/templates"
    kept.rmdir()
    kept.write_text("no directory")
    assert checkout.ask(("template", "{{ word }}1")) == {"{{ word }}1": "here1"}
