"""Renders a role's templates and variables on the controller, as a play would, without a host."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

ROOT = Path(__file__).parents[2]
FACTS = {"os_family": "Debian", "processor_nproc": 2, "memtotal_mb": 4096}


# Reading YAML takes longer than rendering a template with it.
@cache
def load(path: Path) -> dict[str, Any]:
    """Return the variables of a YAML file, whose texts are templates; empty when there is no such file."""
    content: dict[str, Any] = DataLoader().load_from_file(str(path), trusted_as_template=True) if path.exists() else {}
    return content


class Role:
    """A role with the variables that a play gives it."""

    def __init__(self, name: str, **given: Any) -> None:
        self.path = ROOT / "roles" / name
        self.variables: dict[str, Any] = {
            **load(self.path / "defaults/main.yml"),
            **load(self.path / "vars/main.yml"),
            "ansible_facts": FACTS,
            "ansible_managed": "Ansible managed",
            "ansible_search_path": [str(self.path)],
            **given,
        }

    def evaluate(self, expression: str) -> Any:
        """Return what a Jinja expression of this role gives, such as the name of a variable."""
        templar = Templar(DataLoader(), variables=self.variables)
        return templar.template(trust_as_template("{{ " + expression + " }}"))

    def render(self, template: str) -> str:
        """Return the text of one of the role's templates."""
        return str(self.evaluate(f"lookup('quintet.django.template', '{template}')"))
