"""Keep the tables of variables in the roles' READMEs equal to the roles' argument specs.

    role_readmes.py            write the tables
    role_readmes.py --check    say what differs, and end with code 1 if anything does

A README marks the place of an entry point's table with two lines, <!-- variables: ENTRY --> and <!-- end of variables -->.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from console import ROOT, Failure, main, say

Options = dict[str, dict[str, Any]]

TABLE = re.compile(r"(<!-- variables: ([a-z_]+) -->\n)(.*?)(<!-- end of variables -->\n)", re.DOTALL)
HEAD = ("| variable | type | default | what it is |", "|---|---|---|---|")

# Ansible's markup of options, values, results and code, O(name), V(value), RV(name), C(code), and of roles and their
# entries, P(nginx#role), P(site#).
MARKUP = re.compile(r"\b(?:O|V|RV|C|P)\(([^()#]*)(?:#[a-z]*)?\)")


def entries(role: Path) -> dict[str, Options]:
    """Return the options of each entry point of a role, without entry points that repeat another's."""
    spec = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    found: dict[str, Options] = {}
    for entry, content in spec.items():
        options: Options = content.get("options", {})
        if options not in found.values():
            found[entry] = options
    return found


def rows(options: Options, prefix: str = "") -> Iterator[str]:
    """Yield a row for each option and, below one that holds others, a row for each of those."""
    for name, option in options.items():
        yield row(f"{prefix}{name}", option)
        inner = f"{prefix}{name}[]." if option.get("type") == "list" else f"{prefix}{name}."
        yield from rows(option.get("options", {}), inner)


def row(name: str, option: dict[str, Any]) -> str:
    """Return one option's row."""
    kind = option.get("type", "str")
    if kind == "list":
        kind = f"list of {option.get('elements', 'any')}"
    cells = [f"`{name}`", kind, default(option), description(option)]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default(option: dict[str, Any]) -> str:
    """Return what an option is when it is not set, as YAML writes it; empty where the role works it out."""
    if option.get("required"):
        return "required"
    if "default" not in option:
        return ""
    value = option["default"]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return f"`[{', '.join(value)}]`"
    return f"`{value if isinstance(value, str) and value else json.dumps(value)}`"


def description(option: dict[str, Any]) -> str:
    """Return an option's description and its choices as Markdown."""
    given = option.get("description", "")
    text = " ".join(" ".join(given if isinstance(given, list) else [given]).split())
    text = MARKUP.sub(r"`\1`", text)
    # Outside of code Markdown reads <name> as HTML.
    text = re.sub(r"<(\w+)>", r"&lt;\1&gt;", text)
    if "choices" in option:
        text += f" One of {', '.join(f'`{choice}`' for choice in option['choices'])}."
    return text


def with_tables(readme: str, options: dict[str, Options]) -> str:
    """Return a README with the tables that its marks ask for; raises `Failure` for a mark without an entry point."""

    def table(found: re.Match[str]) -> str:
        if found[2] not in options:
            raise Failure(
                f"'<!-- variables: {found[2]} -->': the role has no entry point of that name with options of its own.",
                f"Name one of: {', '.join(options)}.",
            )
        lines = [found[1].rstrip(), *HEAD, *rows(options[found[2]]), found[4]]
        return "\n".join(lines)

    return TABLE.sub(table, readme)


def problems(role: Path) -> list[str]:
    """Say what a role's README lacks, and which tables are not what the argument spec says."""
    path = role / "README.md"
    shown = f"roles/{role.name}/README.md"
    if not path.is_file():
        return [f"{shown}: there is none. Describe the role there, with marks for its tables of variables."]
    text = path.read_text()
    options = entries(role)
    marked = {found[2] for found in TABLE.finditer(text)}
    missing = [
        f"{shown}: has no place for the variables of entry '{entry}'. Add the lines "
        f"<!-- variables: {entry} --> and <!-- end of variables -->."
        for entry in options
        if entry not in marked
    ]
    try:
        differs = with_tables(text, options) != text
    except Failure as failure:
        return [*missing, f"{shown}: {failure}"]
    return missing + ([f"{shown}: differs from the argument spec. Run tools/role_readmes.py."] if differs else [])


def roles(root: Path = ROOT) -> list[Path]:
    """Return the directories of all roles."""
    return sorted(path.parent.parent for path in root.glob("roles/*/meta/argument_specs.yml"))


def write() -> None:
    """Write all tables; raises `Failure` when a README has no place for one."""
    for role in roles():
        path = role / "README.md"
        if path.is_file():
            text = path.read_text()
            written = with_tables(text, entries(role))
            if written != text:
                path.write_text(written)
                say(f"Wrote the tables of roles/{role.name}/README.md")
    check()


def check() -> None:
    """Raise `Failure` with all that is wrong in all READMEs."""
    found = [problem for role in roles() for problem in problems(role)]
    if found:
        raise Failure("\n".join(found), "Mend that, and see it is so: tools/role_readmes.py --check")


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--check"]):
        sys.exit("usage: role_readmes.py [--check]")
    main(check if sys.argv[1:] else write)
