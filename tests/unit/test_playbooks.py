"""What the collection's playbooks must not do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

FOLDER = Path(__file__).parents[2] / "playbooks"
PLAYBOOKS = sorted(path for path in FOLDER.glob("**/*.yml") if path.parent.name != "vars")


def tasks(entries: list[dict[str, Any]], *conditions: Any) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Yield each task of some plays or blocks with all conditions that it is under."""
    for entry in entries:
        own = [*conditions, *([entry["when"]] if "when" in entry else [])]
        yield entry, own
        for key in ("tasks", "pre_tasks", "post_tasks", "block", "rescue", "always"):
            yield from tasks(entry.get(key) or [], *own)


@pytest.mark.parametrize("playbook", PLAYBOOKS, ids=lambda path: path.name)
def test_a_loop_over_apps_shows_no_item(playbook: Path) -> None:
    # An item has the app's secrets. Its label stands for it, but not where the task is skipped and Ansible is talkative.
    for task, conditions in tasks(yaml.safe_load(playbook.read_text())):
        if "django_app" in str(task.get("loop_control")):
            assert "label" in task["loop_control"], task["name"]
            assert conditions == [], task["name"]


ENTRY = {"domains": ["x.test"], "source": {"directory": "/x"}}
APPS: list[dict[str, Any]] = [
    {**ENTRY, "name": "peer"},
    {**ENTRY, "name": "none", "database": False},
    {**ENTRY, "name": "word", "database_login": "password"},
    {**ENTRY, "name": "back"},
]
LEFT = {"value": "", "login": 0, "old": [{"value": "left", "login": 1, "until": ""}], "was": []}
KEPT = {"value": "new", "login": 2, "old": [{"value": "old", "login": 1, "until": ""}], "was": []}
OWN = {"value": "a secret of its own", "old": [], "was": []}
ROTATIONS = {"peer": {}, "none": {}, "word": {"DATABASE_PASSWORD": KEPT}, "back": {"DATABASE_PASSWORD": LEFT}}


def play(playbook: str, name: str) -> dict[str, Any]:
    """Return a play by its name, with all texts as templates."""
    plays = DataLoader().load_from_file(str(PLAYBOOKS[0].parent / playbook), trusted_as_template=True)
    found: dict[str, Any] = next(one for one in plays if one["name"] == name)
    return found


def evaluate(text: Any, **variables: Any) -> Any:
    unused: dict[str, list[str]] = {str(app["name"]): [] for app in APPS}
    hosts: dict[str, Any] = {"web2": {}, "web1": {"django_app_rotations": ROTATIONS, "django_app_unused": unused}}
    derived = DataLoader().load_from_file(str(FOLDER / "vars/topology.yml"), trusted_as_template=True)
    known = {"django_apps": APPS, "groups": {"app": [*hosts]}, "hostvars": hosts, **derived, **variables}
    return Templar(DataLoader(), variables=known).template(trust_as_template(str(text)))


def task_of(one: dict[str, Any], part: str) -> dict[str, Any]:
    return next(task for task, _ in tasks([one]) if part in task.get("name", "") and "loop" in task)


def test_databases_are_set_up_before_the_build_or_with_their_passwords_after_it() -> None:
    before = task_of(play("site.yml", "Set up PostgreSQL"), "databases")
    assert [app["name"] for app in evaluate(before["loop"])] == ["peer", "back"]
    after = task_of(play("site.yml", "Let PostgreSQL accept the apps' passwords"), "databases")
    assert [app["name"] for app in evaluate(after["loop"], **after["vars"])] == ["word", "back"]


def test_on_another_host_every_database_asks_for_a_password() -> None:
    hosts = {
        "web1": {"django_app_rotations": ROTATIONS, "ansible_host": "10.0.0.1"},
        "db1": {"ansible_host": "10.0.0.2"},
    }
    given = {"hostvars": hosts, "groups": {"app": ["web1"], "database": ["db1"]}}
    before = task_of(play("site.yml", "Set up PostgreSQL"), "databases")
    assert evaluate(before["loop"], **given) == []
    assert evaluate("{{ apps_by_password }}", **given) == ["peer", "word", "back"]
    assert evaluate("{{ [postgresql_listen_addresses, postgresql_clients] }}", **given) == [["10.0.0.2"], ["10.0.0.1"]]
    assert evaluate("{{ [django_app_database_address, django_app_redis_address] }}", **given) == ["10.0.0.2", ""]


APART: dict[str, Any] = {
    "hostvars": {
        "web1": {
            "ansible_host": "10.0.0.1",
            "ansible_facts": {"processor_nproc": 2, "memtotal_mb": 4096},
            "django_app_rotations": ROTATIONS,
        },
        "db1": {"ansible_host": "10.0.0.2"},
    },
    "groups": {"app": ["web1"], "database": ["db1"]},
}


def test_on_another_host_the_running_app_has_less_than_the_owner() -> None:
    apps = [*APPS, {**ENTRY, "name": "ddl", "database_rights": "schema"}]
    (task,) = DataLoader().load_from_file(
        str(PLAYBOOKS[0].parent / "tasks/database_passwords.yml"), trusted_as_template=True
    )
    names = ("rights", "owner_certificate", "timeouts")
    wanted = "{{ [" + ", ".join(f"postgresql_database_{name}" for name in names) + "] }}"
    timeouts = {"statement_seconds": 60}
    given = {
        "django_app": {"name": "word", "user": "word", "database_rights": "data", "database_timeouts": timeouts},
        **{f"postgresql_database_{name}": task["vars"][f"postgresql_database_{name}"] for name in names},
    }
    assert evaluate(wanted, **given, **APART) == ["data", True, timeouts]
    # Where the app is on the same host, it is the owner, and migrates as who it is.
    assert evaluate(wanted, **given) == ["schema", False, {}]
    assert evaluate("{{ postgresql_client_databases }}", **APART, django_apps=apps) == ["peer", "word", "back"]
    assert evaluate("{{ postgresql_client_databases }}", django_apps=apps) == []


def test_each_app_host_gets_a_certificate_for_the_owner_of_each_database() -> None:
    certificates = task_of(play("site.yml", "Give the hosts certificates of the inventory's own authority"), "own the")
    for host, names in (("web1", ["peer", "word", "back"]), ("db1", [])):
        found = evaluate(certificates["loop"], inventory_hostname=host, **APART)
        assert [app["name"] for app in found] == names
    assert evaluate(certificates["loop"], inventory_hostname="web1") == []


def test_connections_are_counted_where_the_database_is_apart() -> None:
    counted = "{{ [postgresql_needed_connections, postgresql_needed_connections_sum] }}"
    count, said = evaluate(counted, **APART)
    # Three apps with a database, on one host and on one that may come, and administration.
    assert count == 2 * 3 * 40 + 13
    assert said.count("web1") == 3
    assert evaluate(counted) == [0, ""]


def test_a_pool_is_a_choice_and_before_a_database_on_another_host_only() -> None:
    chosen = "{{ [database_is_pooled, django_app_database_pool_port] }}"
    assert evaluate(chosen, **APART) == [False, 0]
    assert evaluate(chosen, **APART, quintet_database_pool=True) == [True, 6432]
    assert evaluate(chosen, **APART, quintet_database_pool=True, pgbouncer_port=7000) == [True, 7000]
    assert evaluate(chosen, quintet_database_pool=True) == [False, 0]
    pools = evaluate("{{ pgbouncer_databases }}", **APART, quintet_database_pool=True)
    assert pools["word"] == {"users": ["word_1", "word_2"], "pool_size": 20}
    assert [*pools] == ["peer", "word", "back"]
    assert evaluate("{{ [pgbouncer_listen_addresses, pgbouncer_clients] }}", **APART) == [["10.0.0.2"], ["10.0.0.1"]]
    assert (
        evaluate("{{ postgresql_needed_connections }}", **APART, quintet_database_pool=True) == 3 * 40 + 2 * 3 * 4 + 13
    )


@pytest.mark.parametrize("playbook", ["site.yml", "deploy.yml", "rotate.yml"])
def test_pgbouncer_knows_a_password_before_a_generation_has_it(playbook: str) -> None:
    plays = yaml.safe_load((PLAYBOOKS[0].parent / playbook).read_text())
    names = [task.get("name") for task, _ in tasks(plays)]
    (pool,) = (number for number, name in enumerate(names) if "PgBouncer" in str(name))
    accepts = [number for number, name in enumerate(names) if str(name).startswith("Let PostgreSQL accept")]
    assert max(accepts) < pool < names.index("Migrate")
    found = [task for task, _ in tasks(plays)][pool]
    assert found["when"] == "database_is_pooled"


def test_a_site_without_passwords_has_nothing_to_do_between_build_and_migration() -> None:
    after = task_of(play("site.yml", "Let PostgreSQL accept the apps' passwords"), "databases")
    # A secret of that name may be the app's own.
    kept = {"peer": {"DATABASE_PASSWORD": OWN}, "none": {"DATABASE_PASSWORD": OWN}}
    hosts: dict[str, Any]
    for hosts in ({"web1": {"django_app_rotations": kept}}, {"web1": {}}):
        given: dict[str, Any] = {"django_apps": APPS[:2], "hostvars": hosts, "groups": {"app": ["web1"]}}
        assert evaluate(after["loop"], **after["vars"], **given) == []


@pytest.mark.parametrize(
    ("app", "logins", "is_peer"),
    [
        ("word", {"word_1": "old", "word_2": "new"}, False),
        ("back", {"back_1": "left", "back_2": ""}, True),
    ],
)
def test_each_login_gets_the_password_that_is_its(app: str, logins: dict[str, str], is_peer: bool) -> None:
    (task,) = DataLoader().load_from_file(
        str(PLAYBOOKS[0].parent / "tasks/database_passwords.yml"), trusted_as_template=True
    )
    given = {"django_app": {"name": app, "user": app}, **task["vars"]}
    assert evaluate("{{ postgresql_database_logins }}", **given) == logins
    assert evaluate("{{ postgresql_database_peer }}", **given) is is_peer


@pytest.mark.parametrize("playbook", ["site.yml", "rotate.yml"])
def test_a_database_that_refuses_ends_the_changes(playbook: str) -> None:
    plays = yaml.safe_load((PLAYBOOKS[0].parent / playbook).read_text())
    names = [one["name"] for one in plays]
    (number,) = (number for number, name in enumerate(names) if name.startswith("Let PostgreSQL accept"))
    after = next(n for n, one in enumerate(plays) if any(task.get("name") == "Migrate" for task, _ in tasks([one])))
    build = next(n for n, one in enumerate(plays) if any(task.get("name") == "Build" for task, _ in tasks([one])))
    assert build < number < after
    (block,) = plays[number]["tasks"]
    assert "tasks/end_changes.yml" in str(block["rescue"])


@pytest.mark.parametrize(
    ("app", "secret", "retire", "rotated", "loop"),
    [
        ("word", "database", False, ["DATABASE_PASSWORD"], ["word"]),
        (
            "word",
            "SECRET_KEY, channel_layer,database",
            False,
            ["SECRET_KEY", "CHANNEL_LAYER_PASSWORD", "DATABASE_PASSWORD"],
            ["word"],
        ),
        ("word", "DATABASE_PASSWORD", True, ["DATABASE_PASSWORD"], ["word"]),
        ("word", "SECRET_KEY", False, ["SECRET_KEY"], []),
        ("peer", "DATABASE_PASSWORD", False, ["DATABASE_PASSWORD"], []),
    ],
)
def test_a_rotation_knows_its_secrets_and_whose_database_it_concerns(
    app: str, secret: str, retire: bool, rotated: list[str], loop: list[str]
) -> None:
    of_database = play("rotate.yml", "Let PostgreSQL accept the password")
    given = {**of_database["vars"], "app": app, "secret": secret, "retire": retire}
    assert evaluate("{{ [django_app_rotate, django_app_retire] }}", **given) == (
        [[], rotated] if retire else [rotated, []]
    )
    database = task_of(of_database, "database")
    assert [one["name"] for one in evaluate(database["loop"], **database["vars"], **given)] == loop
    redis = task_of(play("rotate.yml", "Let Redis accept the password"), "channel layer")
    assert bool(evaluate(redis["loop"], **redis["vars"], **given)) is ("channel_layer" in secret)


@pytest.mark.parametrize(
    ("app", "secret", "may"),
    [
        ("word", "database", True),
        ("peer", "database", False),
        ("peer", "SECRET_KEY", True),
        ("peer", "SECRET_KEY,database", False),
        ("none", "database", False),
    ],
)
def test_an_app_without_a_password_is_told_that_there_is_none(app: str, secret: str, may: bool) -> None:
    rotation = play("rotate.yml", "Rotate a secret")
    (check,) = (task for task, _ in tasks([rotation]) if task.get("name") == "Say that the database has no password")
    condition = check["ansible.builtin.assert"]["that"]
    assert evaluate("{{ " + condition + " }}", **rotation["vars"], app=app, secret=secret) is may


def test_behind_an_edge_of_its_own_nginx_stops_before_the_apps() -> None:
    hosts = {"app1": {"ansible_host": "10.0.0.1"}, "edge1": {"ansible_host": "10.0.0.2"}}
    apart = {"hostvars": hosts, "groups": {"app": ["app1"], "edge": ["edge1"]}}
    assert evaluate("{{ django_app_before }}", **apart) == ["nginx.service"]
    assert evaluate("{{ django_app_before }}", hostvars=hosts, groups={"app": ["app1"], "edge": ["app1"]}) == []
