"""Sealing: who owns what afterwards, and what a hostile build can't do."""

import os
import stat
from pathlib import Path

import pytest
from host_support import A, B, Machine, machine
from quintet_host.errors import QuintetError
from quintet_host.seal import seal


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    found = machine(tmp_path)
    path = found.add(A, "building")
    (path / "src/code.py").write_text("x")
    (path / "src/code.py").chmod(0o666)
    (path / "src/run.sh").touch()
    (path / "src/run.sh").chmod(0o6777)
    (path / "src/deep/er").mkdir(parents=True)
    (path / "src/deep").chmod(0o2777)
    (path / "static/app.css").touch()
    (path / "static/app.css").chmod(0o777)
    (path / "venv/bin/tool").touch()
    (path / "venv/bin/tool").chmod(0o755)
    (path / "run").unlink()
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_modes_and_state(here: Machine) -> None:
    path = here.layout.generation("shop", A)
    assert seal(here.host, "shop", A) is True
    assert {name: oct(mode(path / name)) for name in ("src/code.py", "src/run.sh", "src/deep", "src/deep/er")} == {
        "src/code.py": "0o640",
        "src/run.sh": "0o750",
        "src/deep": "0o750",
        "src/deep/er": "0o750",
    }
    assert mode(path) == 0o751
    assert (mode(path / "static"), mode(path / "static/app.css")) == (0o755, 0o644)
    assert (mode(path / "units"), mode(path / "units/tmpfiles.conf")) == (0o755, 0o644)
    assert mode(path / "generation.json") == 0o640
    venv = here.layout.venvs("shop") / "digest"
    assert (mode(venv), mode(venv / "bin/tool")) == (0o750, 0o750)
    assert (venv / ".complete").is_file()
    assert (path / "run").readlink() == here.layout.run("shop", A)
    assert here.state(A) == ("built", "")
    assert seal(here.host, "shop", A) is False


def test_a_sealed_environment_is_left_alone(here: Machine) -> None:
    seal(here.host, "shop", A)
    tool = here.layout.venvs("shop") / "digest/bin/tool"
    tool.chmod(0o700)
    here.add(B, "building")
    seal(here.host, "shop", B)
    assert mode(tool) == 0o700


def test_an_environment_that_says_so_itself_is_not_sealed(here: Machine, tmp_path: Path) -> None:
    elsewhere = tmp_path / "complete"
    elsewhere.touch()
    venv = here.layout.venvs("shop") / "digest"
    (venv / ".complete").symlink_to(elsewhere)
    (venv / "bin/tool").chmod(0o777)
    seal(here.host, "shop", A)
    assert mode(venv / "bin/tool") == 0o750
    assert not (venv / ".complete").is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_everything_is_taken_from_the_build_user(here: Machine) -> None:
    path = here.layout.generation("shop", A)
    venv = here.layout.venvs("shop") / "digest"
    (venv / ".complete").touch()
    for below in (path, venv):
        for found in [below, *below.rglob("*")]:
            os.chown(found, 12345, 12345, follow_symlinks=False)
    seal(here.host, "shop", A)
    owners = {found.lstat().st_uid for below in (path, venv) for found in [below, *below.rglob("*")]}
    assert owners == {0}
    assert mode(venv / "bin/tool") == 0o750


def test_links_are_not_followed(here: Machine, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").touch(mode=0o600)
    (outside / "secret").chmod(0o600)
    outside.chmod(0o700)
    path = here.layout.generation("shop", A)
    (path / "static/link").symlink_to(outside / "secret")
    (path / "static/directory").symlink_to(outside)
    seal(here.host, "shop", A)
    assert mode(outside / "secret") == 0o600
    assert mode(outside) == 0o700


@pytest.mark.parametrize("name", ["src", "units"])
def test_a_part_that_is_a_link_is_refused(here: Machine, tmp_path: Path, name: str) -> None:
    path = here.layout.generation("shop", A)
    (path / name).rename(tmp_path / "moved")
    (path / name).symlink_to(tmp_path / "moved")
    with pytest.raises(QuintetError, match=f"its {name} is not a directory"):
        seal(here.host, "shop", A)
    assert here.state(A)[0] == "building"


def test_another_name_of_a_file_keeps_the_old_file(here: Machine, tmp_path: Path) -> None:
    source = here.layout.generation("shop", A) / "src/code.py"
    cached = tmp_path / "cached"
    os.link(source, cached)
    cached.chmod(0o604)
    seal(here.host, "shop", A)
    assert mode(cached) == 0o604
    assert cached.stat().st_ino != source.stat().st_ino
    assert source.read_text() == "x"
    assert mode(source) == 0o640
    assert sorted(path.name for path in source.parent.iterdir()) == ["code.py", "deep", "run.sh"]


def test_a_fifo_is_refused_by_name(here: Machine) -> None:
    os.mkfifo(here.layout.generation("shop", A) / "src/deep/pipe")
    with pytest.raises(QuintetError, match="src/deep/pipe is neither a file"):
        seal(here.host, "shop", A)
    assert here.state(A)[0] == "building"


def test_what_is_missing_is_named(here: Machine) -> None:
    path = here.layout.generation("shop", A)
    (path / "venv").unlink()
    with pytest.raises(QuintetError, match="its venv is not a link"):
        seal(here.host, "shop", A)
    (path / "venv").symlink_to("../../venvs/../../../etc")
    with pytest.raises(QuintetError, match="its venv is not a link"):
        seal(here.host, "shop", A)
    (path / "venv").unlink()
    (path / "venv").symlink_to("../../venvs/absent")
    with pytest.raises(QuintetError, match="absent does not exist"):
        seal(here.host, "shop", A)
    (path / "static/app.css").unlink()
    (path / "static").rmdir()
    for unit in (path / "units").iterdir():
        unit.unlink()
    (path / "units").rmdir()
    with pytest.raises(QuintetError, match="it has no units"):
        seal(here.host, "shop", A)
