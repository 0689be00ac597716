"""The lookup that renders templates, as Ansible's own does, but without a copy of all variables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

OURS, ANSIBLES = "quintet.django.template", "ansible.builtin.template"
TEXT = "{% set word = word ~ '!' %}{{ word }} {{ more | default('no more') }}\n{% include 'part.j2' %}\n"


class Uncopied(dict[str, Any]):
    """What a copy in depth would come upon."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Uncopied:
        raise AssertionError("copied")


def look_up(folder: Path, lookup: str, arguments: str, **more: Any) -> Any:
    """Return what a lookup gives for arguments, and the word afterwards."""
    (folder / "templates").mkdir(exist_ok=True)
    (folder / "templates/text.j2").write_text(TEXT)
    (folder / "templates/part.j2").write_text("{{ ansible_search_path | length }} {{ template_path | basename }}")
    variables = {"word": "{{ 'he' ~ 're' }}", "ansible_search_path": [str(folder)], **more}
    variables["word"] = trust_as_template(variables["word"])
    templar = Templar(DataLoader(), variables=variables)
    return templar.template(trust_as_template("{{ [lookup('" + lookup + "', " + arguments + "), word] }}"))


@pytest.mark.parametrize("arguments", ["'text.j2'", "'text.j2', template_vars={'more': 'more'}"])
def test_it_gives_what_ansibles_gives(tmp_path: Path, arguments: str) -> None:
    text, word = look_up(tmp_path, OURS, arguments)
    assert text.startswith("here! more\n" if "more" in arguments else "here! no more\n")
    assert word == "here"
    assert [text, word] == look_up(tmp_path, ANSIBLES, arguments)


def test_a_missing_template_is_told(tmp_path: Path) -> None:
    with pytest.raises(AnsibleError, match=r"template file nowhere\.j2 could not be found"):
        look_up(tmp_path, OURS, "'nowhere.j2'")


def test_no_variable_is_copied(tmp_path: Path) -> None:
    assert look_up(tmp_path, OURS, "'text.j2'", other=Uncopied())[1] == "here"
    with pytest.raises(AnsibleError, match="copied"):
        look_up(tmp_path, ANSIBLES, "'text.j2'", other=Uncopied())
