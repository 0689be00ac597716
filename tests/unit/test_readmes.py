"""The documentation says what the code says: tables of variables, links, and targets of make."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
role_readmes: Any = importlib.import_module("role_readmes")
Failure: Any = importlib.import_module("console").Failure

LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^( *)(```|~~~).*?^ *\2$|`(?:[^`\n]|\n(?!\n))+`", re.DOTALL | re.MULTILINE)


def documents() -> list[Path]:
    """Return all Markdown files of the checkout that are not ignored, committed or not yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.splitlines() if (ROOT / name).is_file()]


def anchors(text: str) -> set[str]:
    """Return the anchors of a document's headings, as GitHub names them."""
    headings = re.findall(r"^#+ +(.+?)$", CODE.sub(lambda found: found[0].strip("`"), text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def dead_links(document: Path) -> list[str]:
    """Return a document's links to files and headings that are not there."""
    dead = []
    for target in LINK.findall(CODE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file.read_text())):
            dead.append(target)
    return dead


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def named_targets(text: str) -> set[str]:
    """Return the targets of make in a document's code: `make x`, `make x VARIABLE=y`."""
    code = "\n".join(found[0] for found in CODE.finditer(text))
    return set(re.findall(r"(?<![\w-])make ([a-z][a-z-]*)", code))


@pytest.mark.parametrize("role", role_readmes.roles(), ids=lambda role: role.name)
def test_the_readme_has_the_tables_of_the_spec(role: Path) -> None:
    assert role_readmes.problems(role) == []


def test_there_are_no_roles_without_a_readme_or_a_spec() -> None:
    assert [path.name for path in role_readmes.roles()] == sorted(path.name for path in ROOT.glob("roles/*"))


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    assert dead_links(document) == []


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_targets_of_make_exist(document: Path) -> None:
    assert named_targets(document.read_text()) - make_targets() == set()


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_in_yaml_can_be_read(document: Path) -> None:
    for block in re.findall(r"^```yaml\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE):
        yaml.safe_load(block)


def test_the_first_page_names_what_a_user_begins_with() -> None:
    assert named_targets((ROOT / "README.md").read_text()) >= {"demo", "demo-down", "test", "check", "help", "venv"}


# ---- The tools of this test can find something -----------------------------------------------------------------------


def make_role(root: Path, options: dict[str, Any], readme: str | None) -> Path:
    role = root / "roles/hello"
    (role / "meta").mkdir(parents=True)
    spec = {"argument_specs": {"main": {"options": options}, "again": {"options": options}}}
    (role / "meta/argument_specs.yml").write_text(yaml.safe_dump(spec, sort_keys=False))
    if readme is not None:
        (role / "README.md").write_text(readme)
    return role


MARKED = "# hello\n\n<!-- variables: main -->\n<!-- end of variables -->\n\nThe end.\n"
OPTIONS: dict[str, Any] = {
    "hello_name": {"type": "str", "required": True, "description": "Name, as V(<user>) or O(other|x)."},
    "hello_servers": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "description": ["Servers.", "All of them."],
        "options": {"kind": {"type": "str", "choices": ["a", "b"], "default": "a", "description": "Kind."}},
    },
    "hello_words": {"type": "list", "elements": "str", "default": ["x", "y"], "description": "Words."},
    "hello_on": {"type": "bool", "default": False, "description": "Whether."},
    "hello_text": {"type": "str", "default": "", "description": "Text for P(nginx#role)."},
    "hello_worked_out": {"type": "int", "description": "Number."},
}


def test_a_table_has_a_row_for_each_option_and_each_nested_one(tmp_path: Path) -> None:
    role = make_role(tmp_path, OPTIONS, MARKED)
    assert role_readmes.with_tables(MARKED, role_readmes.entries(role)) == (
        "# hello\n\n<!-- variables: main -->\n"
        "| variable | type | default | what it is |\n|---|---|---|---|\n"
        "| `hello_name` | str | required | Name, as `&lt;user&gt;` or `other\\|x`. |\n"
        "| `hello_servers` | list of dict | `[]` | Servers. All of them. |\n"
        "| `hello_servers[].kind` | str | `a` | Kind. One of `a`, `b`. |\n"
        "| `hello_words` | list of str | `[x, y]` | Words. |\n"
        "| `hello_on` | bool | `false` | Whether. |\n"
        '| `hello_text` | str | `""` | Text for `nginx`. |\n'
        "| `hello_worked_out` | int |  | Number. |\n"
        "<!-- end of variables -->\n\nThe end.\n"
    )


def test_drift_is_said_and_mended(tmp_path: Path) -> None:
    role = make_role(tmp_path, OPTIONS, MARKED)
    assert role_readmes.problems(role) == [
        "roles/hello/README.md: differs from the argument spec. Run tools/role_readmes.py."
    ]
    (role / "README.md").write_text(role_readmes.with_tables(MARKED, role_readmes.entries(role)))
    assert role_readmes.problems(role) == []


def test_a_missing_readme_and_a_missing_place_are_said(tmp_path: Path) -> None:
    role = make_role(tmp_path, OPTIONS, None)
    assert role_readmes.problems(role)[0].startswith("roles/hello/README.md: there is none.")
    (role / "README.md").write_text("# hello\n")
    assert "no place for the variables of entry 'main'" in role_readmes.problems(role)[0]


def test_a_place_for_an_unknown_entry_is_refused(tmp_path: Path) -> None:
    role = make_role(tmp_path, OPTIONS, None)
    with pytest.raises(Failure, match="variables: site"):
        role_readmes.with_tables(MARKED.replace("main", "site"), role_readmes.entries(role))


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page, with `code`\n\n[here](page.md#a-page-with-code) [there](#nowhere) [file](missing.md)\n"
        "[web](https://example.org/x) `[code](none.md)`\n\n```\n[block](none.md)\n```\n"
    )
    assert dead_links(page) == ["#nowhere", "missing.md"]


def test_only_targets_in_code_count() -> None:
    text = "You make sure that `make demo` runs.\n\n```console\n$ make test DEMO_SUITE=x\n# remake that\n```\n"
    assert named_targets(text) == {"demo", "test"}
