"""What the built collection has, and what it has not."""

import json
import re
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest
import yaml

ROOT = Path(__file__).parents[2]
# A new name at the top is a decision: add it here, or to build_ignore in galaxy.yml.
TOP = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "FILES.json",
    "LICENSE",
    "MANIFEST.json",
    "README.md",
    "changelogs",
    "docs",
    "inventories",
    "meta",
    "playbooks",
    "plugins",
    "roles",
    "sample_app",
}
NEEDED = {
    "LICENSE",
    "README.md",
    "inventories/cluster/group_vars/all/apps.yml",
    "inventories/cluster/hosts.yml",
    "inventories/prod/group_vars/all/apps.yml",
    "inventories/prod/hosts.yml",
    "meta/runtime.yml",
    "playbooks/deploy.yml",
    "playbooks/rollback.yml",
    "playbooks/roles/topology/vars/main.yml",
    "playbooks/maintenance.yml",
    "playbooks/rotate.yml",
    "playbooks/site.yml",
    "playbooks/tasks/end_changes.yml",
    "plugins/action/app_release.py",
    "roles/daphne/files/daphne_launcher.py",
    "roles/django_app/files/quintet/quintet",
    "roles/nginx/templates/site.conf.j2",
    # What is left out of the sample app's release.
    "sample_app/.gitignore",
    "sample_app/manage.py",
    "sample_app/requirements.txt",
}


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tarfile.TarFile]:
    folder = tmp_path_factory.mktemp("artifact")
    subprocess.run(
        ["ansible-galaxy", "collection", "build", "--output-path", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.iterdir()
    with tarfile.open(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def paths(artifact: tarfile.TarFile) -> list[PurePosixPath]:
    return [PurePosixPath(member.name) for member in artifact.getmembers()]


def test_what_is_needed_is_there(paths: list[PurePosixPath]) -> None:
    assert NEEDED - {str(path) for path in paths} == set()
    assert {path.parts[1] for path in paths if path.parent == PurePosixPath("roles")} == {
        path.name for path in (ROOT / "roles").iterdir()
    }


def test_every_role_has_its_tasks_and_its_specification(paths: list[PurePosixPath]) -> None:
    present = {str(path) for path in paths}
    for role in (ROOT / "roles").iterdir():
        assert {f"roles/{role.name}/tasks/main.yml", f"roles/{role.name}/meta/argument_specs.yml"} <= present


def test_nothing_else_is_there(paths: list[PurePosixPath]) -> None:
    assert {path.parts[0] for path in paths} - TOP == set()
    assert {path.parts[1] for path in paths if path.match("inventories/*")} == {"cluster", "prod"}
    hidden = [str(path) for path in paths if any(part.startswith(".") for part in path.parts)]
    assert hidden == ["sample_app/.gitignore"]
    made = re.compile(r"__pycache__|\.pyc$|\.sqlite3|\.tar\.gz$|static_collected|/media/")
    assert [str(path) for path in paths if made.search(str(path))] == []


def test_there_are_only_files_and_directories(artifact: tarfile.TarFile) -> None:
    assert [member.name for member in artifact.getmembers() if not (member.isfile() or member.isdir())] == []


def test_files_have_the_modes_that_they_need(artifact: tarfile.TarFile) -> None:
    executable = {member.name for member in artifact.getmembers() if member.isfile() and member.mode & 0o111}
    assert executable == {"roles/django_app/files/quintet/quintet", "sample_app/manage.py"}


def test_it_needs_what_requirements_yml_names(artifact: tarfile.TarFile) -> None:
    # `make venv` reads one, ansible-galaxy the other.
    manifest = artifact.extractfile("MANIFEST.json")
    assert manifest
    needs = json.load(manifest)["collection_info"]["dependencies"]
    requirements = yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]
    assert needs == {collection["name"]: collection["version"] for collection in requirements}
