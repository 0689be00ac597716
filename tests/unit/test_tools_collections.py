"""Fetching collections: what is missing, from where, and what is never overwritten."""

import importlib
import json
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))
console: Any = importlib.import_module("console")
fetch_collections: Any = importlib.import_module("fetch_collections")


def manifest(version: str, **dependencies: str) -> str:
    wanted = {name.replace("_", ".", 1): versions for name, versions in dependencies.items()}
    return json.dumps({"collection_info": {"version": version, "dependencies": wanted}})


@pytest.fixture
def wheel(tmp_path: Path) -> zipfile.ZipFile:
    path = tmp_path / "ansible-12.0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ansible_collections/one/a/MANIFEST.json", manifest("2.1.0", one_b=">=1.0.0"))
        archive.writestr("ansible_collections/one/a/plugins/x.py", "")
        archive.writestr("ansible_collections/one/b/MANIFEST.json", manifest("1.4.0"))
        archive.writestr("ansible_collections/one/bb/MANIFEST.json", manifest("9.0.0"))
    return zipfile.ZipFile(path)


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "collections/ansible_collections"
    directory.mkdir(parents=True)
    monkeypatch.setattr(fetch_collections, "COLLECTIONS", directory)
    return directory


def test_takes_what_is_wanted_with_its_dependencies_and_nothing_else(
    wheel: zipfile.ZipFile, target: Path, tmp_path: Path
) -> None:
    fetch_collections.unpack(wheel, {"one.a": ">=2.0.0"}, tmp_path / "scratch")
    assert sorted(path.name for path in (target / "one").iterdir()) == ["a", "b"]
    assert (target / "one/a/plugins/x.py").is_file()
    assert fetch_collections.unsatisfied({"one.a": ">=2.0.0"}, target) == []


def test_names_missing_old_and_dependent_collections(wheel: zipfile.ZipFile, target: Path, tmp_path: Path) -> None:
    fetch_collections.unpack(wheel, {"one.a": "*"}, tmp_path / "scratch")
    (target / "one/b/MANIFEST.json").unlink()
    found = fetch_collections.unsatisfied({"one.a": ">=2.0.0", "one.c": "*"}, target)
    assert found == ["one.b >=1.0.0", "one.c *"]
    assert fetch_collections.unsatisfied({"one.a": ">=2.0.0,<2.1.0"}, target) == [
        "one.a >=2.0.0,<2.1.0 (there is 2.1.0)"
    ]


def test_a_link_to_a_checkout_is_never_overwritten(wheel: zipfile.ZipFile, target: Path, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (target / "one").mkdir()
    (target / "one/a").symlink_to(checkout)
    with pytest.raises(console.Failure, match="is a link, which is never overwritten"):
        fetch_collections.unpack(wheel, {"one.a": "*"}, tmp_path / "scratch")
    assert (target / "one/a").is_symlink()
    assert list(checkout.iterdir()) == []


def test_a_silent_galaxy_is_given_up_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = threading.Event()

    def hang(*_arguments: object, **_options: object) -> None:
        given_up.wait(30)
        raise OSError

    monkeypatch.setattr(fetch_collections.urllib.request, "urlopen", hang)
    monkeypatch.setattr(fetch_collections, "ANSWER_SECONDS", 0.3)
    started = time.monotonic()
    assert fetch_collections.galaxy_answers() is False
    assert time.monotonic() - started < 3
    given_up.set()


def test_the_requirements_of_the_checkout_are_readable() -> None:
    wanted = fetch_collections.read_requirements([ROOT / "requirements.yml", ROOT / "tools/requirements.yml"])
    assert {"community.postgresql", "community.docker", "ansible.posix"} <= set(wanted)
