"""The module app_environment, run as Ansible runs it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

MODULE = Path(__file__).parents[2] / "plugins/modules/app_environment.py"


def keep(directory: Path, check: bool = False, **arguments: Any) -> dict[str, Any]:
    wrapped = {
        "ANSIBLE_MODULE_ARGS": {
            "directory": str(directory),
            **arguments,
            "_ansible_check_mode": check,
            "_ansible_remote_tmp": "/tmp",
        }
    }
    done = subprocess.run([sys.executable, MODULE, json.dumps(wrapped)], capture_output=True, text=True, check=False)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_same_content_keeps_its_number_and_its_generated_secrets(tmp_path: Path) -> None:
    first = keep(tmp_path, environment={"A": "1"}, secrets={"SECRET_KEY": ""})
    second = keep(tmp_path, environment={"A": "1"}, secrets={"SECRET_KEY": ""})
    assert (first["changed"], first["revision"]) == (True, 1)
    assert (second["changed"], second["revision"]) == (False, 1)
    assert first["secrets"] == second["secrets"]
    assert len(first["secrets"]["SECRET_KEY"]) >= 50


def test_a_change_is_a_new_revision_and_the_way_back_is_the_old_one(tmp_path: Path) -> None:
    numbers = [
        keep(tmp_path, environment={"A": value}, secrets={"KEY": secret})["revision"]
        for value, secret in [("1", ""), ("2", ""), ("2", "given"), ("1", "")]
    ]
    assert numbers == [1, 2, 3, 1]


def test_secrets_are_files_and_nowhere_else(tmp_path: Path) -> None:
    keep(tmp_path, environment={"A": "1"}, secrets={"KEY": "hunter2"})
    revision = tmp_path / "revisions/1"
    assert (revision / "credentials/KEY").read_text() == "hunter2"
    assert (revision / "environment").read_text() == 'A="1"\n'
    assert "hunter2" not in (revision / "build.environment").read_text()
    assert 'KEY="placeholder' in (revision / "build.environment").read_text()
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_secrets_as_environment(tmp_path: Path) -> None:
    keep(tmp_path, environment={"A": "1"}, secrets={"KEY": "hunter2"}, secrets_as="environment")
    assert (tmp_path / "revisions/1/environment").read_text() == 'A="1"\nKEY="hunter2"\n'
    assert not (tmp_path / "revisions/1/credentials").exists()


def test_quoting_is_systemds(tmp_path: Path) -> None:
    keep(tmp_path, environment={"A": 'a "b" \\ $c `d` %e', "B": True})
    assert (tmp_path / "revisions/1/environment").read_text() == 'A="a \\"b\\" \\\\ \\$c \\`d\\` %e"\nB="true"\n'


def test_check_mode_says_the_number_and_writes_nothing(tmp_path: Path) -> None:
    result = keep(tmp_path / "shop", check=True, secrets={"KEY": ""})
    assert (result["changed"], result["revision"]) == (True, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_generated_secret_outlives_a_given_one(tmp_path: Path) -> None:
    generated = keep(tmp_path, secrets={"KEY": ""})["secrets"]["KEY"]
    keep(tmp_path, secrets={"KEY": "given"})
    assert keep(tmp_path, secrets={"KEY": ""})["secrets"]["KEY"] == generated


def test_what_another_host_generated_is_used_and_kept(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {
        "secrets": {"KEY": "", "GIVEN": "g"},
        "generated_elsewhere": {"KEY": "theirs", "GIVEN": "no"},
    }
    first, second = keep(tmp_path, **arguments), keep(tmp_path, **arguments)
    assert first["secrets"] == {"KEY": "theirs", "GIVEN": "g"}
    assert json.loads((tmp_path / "secrets.json").read_text()) == {"KEY": "theirs"}
    assert (first["changed"], second["changed"]) == (True, False)


def test_two_hosts_that_generated_apart_are_told_and_nothing_is_lost(tmp_path: Path) -> None:
    own = keep(tmp_path, secrets={"KEY": ""})["secrets"]["KEY"]
    result = keep(tmp_path, secrets={"KEY": ""}, generated_elsewhere={"KEY": "theirs"})
    assert (result["conflicts"], result["changed"], result["secrets"]) == (["KEY"], False, {})
    assert json.loads((tmp_path / "secrets.json").read_text()) == {"KEY": own}
    assert keep(tmp_path, secrets={"KEY": ""}, generated_elsewhere={"KEY": own})["conflicts"] == []
