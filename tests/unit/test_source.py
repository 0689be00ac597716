"""Packing an app's source on the controller, and its lock."""

import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.module_utils.source import (
    SourceError,
    check_lock,
    digest,
    list_files,
    source_directory,
    source_problems,
    write_archive,
)

LOCKED = (
    "gunicorn==27.0.1 \\\n    --hash=sha256:aa\ndaphne==4.2.3 ; python_version >= '3.11' \\\n    --hash=sha256:bb\n"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "app"
    (directory / "config").mkdir(parents=True)
    (directory / "config/wsgi.py").write_text("application = None\n")
    (directory / "manage.py").write_text("#!/usr/bin/env python3\n")
    (directory / "manage.py").chmod(0o755)
    (directory / "requirements.txt").write_text(LOCKED)
    return directory


def names(directory: Path) -> list[str]:
    return [str(entry.path) for entry in list_files(directory)]


def test_ignored_and_local_files_are_left_out(source: Path) -> None:
    (source / ".gitignore").write_text("*.log\nbuild/\n")
    for name in ("x.log", ".env", "db.sqlite3", "config/__pycache__/wsgi.pyc", "build/x", ".venv/bin/python"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("x")
    assert names(source) == [".gitignore", "config/wsgi.py", "manage.py", "requirements.txt"]


def test_digest_depends_on_content_path_and_mode_alone(source: Path, tmp_path: Path) -> None:
    before = digest(source, list_files(source))
    copy = source.rename(tmp_path / "elsewhere")
    assert digest(copy, list_files(copy)) == before
    (copy / "manage.py").chmod(0o644)
    assert digest(copy, list_files(copy)) != before
    (copy / "manage.py").chmod(0o755)
    (copy / "config/wsgi.py").write_text("application = 1\n")
    assert digest(copy, list_files(copy)) != before


def test_archive_has_the_files_with_plain_modes_and_is_the_same_each_time(source: Path, tmp_path: Path) -> None:
    (source / "link").symlink_to("manage.py")
    for target in ("one", "two"):
        write_archive(source, list_files(source), tmp_path / target)
    with tarfile.open(tmp_path / "one") as archive:
        members = {member.name: (member.mode, member.linkname) for member in archive}
    assert members["manage.py"] == (0o755, "")
    assert members["config/wsgi.py"] == (0o644, "")
    assert members["link"][1] == "manage.py"
    assert members["config"] == (0o755, "")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_repository_inside_is_refused_by_name(source: Path) -> None:
    (source / "vendor").mkdir()
    subprocess.run(["git", "init", "--quiet", source / "vendor"], check=True)
    (source / "vendor/code.py").write_text("")
    with pytest.raises(SourceError, match=r"vendor/? is a git repository of its own"):
        list_files(source)


def test_a_hooks_index_does_not_hide_files(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = names(source)
    for command in (["init", "--quiet"], ["add", "."]):
        subprocess.run(["git", "-C", source, *command], check=True)
    monkeypatch.setenv("GIT_INDEX_FILE", str(source / ".git/index"))
    assert names(source) == before


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside"])
def test_a_link_out_of_the_source_is_refused(source: Path, target: str) -> None:
    (source / "link").symlink_to(target)
    with pytest.raises(SourceError, match="link is a link to"):
        list_files(source)


def test_a_missing_and_an_empty_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is no directory on the controller"):
        list_files(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="has no files"):
        list_files(tmp_path)


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        (None, r"there is no requirements.txt in .*uv pip compile"),
        ("gunicorn==27.0.1\ndaphne==4.2.3 --hash=sha256:bb\n", "does not lock gunicorn with a hash"),
        ("gunicorn==27.0.1 --hash=sha256:aa\n", "has no daphne, which serves the app"),
        ("-r base.txt\n" + LOCKED, "takes dependencies from elsewhere: -r base.txt"),
        ("-e .\n" + LOCKED, "takes dependencies from elsewhere: -e ."),
        ("./local\n" + LOCKED, "takes dependencies from elsewhere: ./local"),
    ],
)
def test_a_lock_that_does_not_lock_is_refused(source: Path, lock: str | None, words: str) -> None:
    (source / "requirements.txt").unlink()
    if lock is not None:
        (source / "requirements.txt").write_text(lock)
    with pytest.raises(SourceError, match=words):
        check_lock(source, "requirements.txt", ["gunicorn", "daphne"])


def test_problems_name_the_app_and_what_is_wrong_with_its_source(source: Path, tmp_path: Path) -> None:
    def app(directory: str, **more: str) -> dict[str, Any]:
        return {"source": {"directory": directory}, "requirements": "requirements.txt", "asgi": "", **more}

    apps = [app("app"), app("nowhere"), app("app", requirements="lock.txt")]
    found = source_problems(apps, ["apps[0]", "apps[1]", "apps[2]"], str(tmp_path))
    assert [problem.split(" ")[0] for problem in found] == ["apps[1].source.directory:", "apps[2].requirements:"]


def test_a_relative_source_starts_at_the_inventory_behind_its_link(tmp_path: Path) -> None:
    (tmp_path / "inventories/prod").mkdir(parents=True)
    (tmp_path / "prod").symlink_to("inventories/prod")
    found = source_directory({"source": {"directory": "../../shop"}}, str(tmp_path / "prod"))
    assert found.resolve() == tmp_path / "shop"


def test_a_good_lock_has_a_digest_of_its_text(source: Path) -> None:
    before = check_lock(source, "requirements.txt", ["gunicorn", "daphne"])
    (source / "requirements.txt").write_text(LOCKED.replace("27.0.1", "27.0.2"))
    assert check_lock(source, "requirements.txt", ["gunicorn", "daphne"]) != before
