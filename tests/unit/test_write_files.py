"""The module write_files, run as Ansible runs it."""

import getpass
import grp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

MODULE = Path(__file__).parents[2] / "plugins/modules/write_files.py"
ME = {"owner": getpass.getuser(), "group": grp.getgrgid(os.getgid()).gr_name}


def write_files(check: bool = False, **arguments: Any) -> dict[str, Any]:
    wrapped = {"ANSIBLE_MODULE_ARGS": {**arguments, "_ansible_check_mode": check, "_ansible_remote_tmp": "/tmp"}}
    done = subprocess.run([sys.executable, MODULE, json.dumps(wrapped)], capture_output=True, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_writes_once_and_then_nothing(tmp_path: Path) -> None:
    wanted: dict[str, Any] = {
        "directories": [{"path": str(tmp_path / "a"), "mode": "0750", **ME}],
        "files": [{"path": str(tmp_path / "a/f"), "content": "one\n", "mode": "0600", **ME}],
    }
    first, second = write_files(**wanted), write_files(**wanted)
    assert first["changed_paths"] == [str(tmp_path / "a"), str(tmp_path / "a/f")]
    assert (tmp_path / "a/f").read_text() == "one\n"
    assert (tmp_path / "a/f").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750
    assert second["changed"] is False
    assert second["changed_paths"] == []


def test_check_mode_reports_and_leaves_alone(tmp_path: Path) -> None:
    wanted = {"files": [{"path": str(tmp_path / "missing/f"), "content": "x", **ME}]}
    assert write_files(check=True, **wanted)["changed"] is True
    assert list(tmp_path.iterdir()) == []


def test_repairs_permissions_alone(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("x")
    path.chmod(0o666)
    before = path.stat().st_ino
    result = write_files(files=[{"path": str(path), "content": "x", "mode": "0640", **ME}])
    assert result["changed_paths"] == [str(path)]
    assert path.stat().st_mode & 0o777 == 0o640
    assert path.stat().st_ino == before


def test_a_link_in_the_way_is_replaced_and_its_target_is_left(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("x")
    (tmp_path / "f").symlink_to(target)
    write_files(files=[{"path": str(tmp_path / "f"), "content": "new", **ME}])
    assert target.read_text() == "x"
    assert not (tmp_path / "f").is_symlink()


def test_a_refused_file_stops_all_of_them(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("old")
    result = write_files(
        files=[
            {"path": str(tmp_path / "a"), "content": "fine", **ME},
            {"path": str(tmp_path / "b"), "content": "bad", **ME},
        ],
        validate=[{"path": str(tmp_path / "b"), "command": ["grep", "-q", "good", "%s"]}],
    )
    assert result["failed"] is True
    assert f"{tmp_path}/b" in result["msg"]
    assert "Nothing was changed" in result["msg"]
    assert not (tmp_path / "a").exists()
    assert (tmp_path / "b").read_text() == "old"


def test_absent_removes_files_and_refuses_directories(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    (tmp_path / "d").mkdir()
    assert write_files(absent=[str(tmp_path / "f")])["changed"] is True
    assert not (tmp_path / "f").exists()
    assert write_files(absent=[str(tmp_path / "f")])["changed"] is False
    assert "is a directory" in write_files(absent=[str(tmp_path / "d")])["msg"]


def test_private_text_is_not_shown_in_a_diff(tmp_path: Path) -> None:
    secret = {"path": str(tmp_path / "s"), "content": "hunter2", "mode": "0600", **ME}
    public = {"path": str(tmp_path / "p"), "content": "hello", "mode": "0644", **ME}
    shown = json.dumps(write_files(files=[secret, public])["diff"])
    assert "hello" in shown
    assert "hunter2" not in shown


def test_an_unknown_owner_is_named(tmp_path: Path) -> None:
    result = write_files(files=[{"path": str(tmp_path / "f"), "content": "x", "owner": "nobody_here", "group": "root"}])
    assert "nobody_here" in result["msg"]
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_place_of_a_directory_is_never_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(mode=0o700)
    (tmp_path / "d").symlink_to(victim)
    result = write_files(directories=[{"path": str(tmp_path / "d"), "mode": "0755", **ME}])
    assert result["failed"] is True
    assert str(tmp_path / "d") in result["msg"]
    assert victim.stat().st_mode & 0o777 == 0o700


def test_makes_links_and_replaces_what_is_in_their_place(tmp_path: Path) -> None:
    (tmp_path / "stale").symlink_to("nowhere")
    (tmp_path / "file").write_text("x")
    wanted: dict[str, Any] = {
        "links": [{"path": str(tmp_path / name), "target": "../t"} for name in ("new/link", "stale", "file")]
    }
    assert write_files(check=True, **wanted)["changed"] is True
    assert (tmp_path / "stale").readlink() == Path("nowhere")
    first, second = write_files(**wanted), write_files(**wanted)
    assert first["changed_paths"] == sorted(str(tmp_path / name) for name in ("new/link", "stale", "file"))
    assert {(tmp_path / name).readlink() for name in ("new/link", "stale", "file")} == {Path("../t")}
    assert second["changed"] is False


def test_a_directory_is_not_replaced_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    result = write_files(links=[{"path": str(tmp_path / "directory"), "target": "t"}])
    assert result["failed"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["directory"]
