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
PLAYBOOKS = sorted(path for path in FOLDER.glob("**/*.yml") if FOLDER / "roles" not in path.parents)


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
    derived = DataLoader().load_from_file(str(FOLDER / "roles/topology/vars/main.yml"), trusted_as_template=True)
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


PARTS: dict[str, list[str]] = {
    "edge": ["edge1", "edge2"],
    "app": ["web1", "web2"],
    "database": ["db1"],
    "redis": ["redis1"],
}
HOSTS: dict[str, Any] = {
    name: {"ansible_host": f"10.0.0.{number}"}
    for number, name in enumerate(("edge1", "edge2", "web1", "web2", "db1", "redis1"), start=1)
}


def open_to(host: str, **given: Any) -> dict[str, tuple[list[int], list[str]]]:
    """Return who may reach which ports of a host, by the name of the service; none that nobody may reach."""
    known = {"groups": PARTS, "hostvars": HOSTS, "inventory_hostname": host, **given}
    services = evaluate("{{ firewall_services }}", **known)
    return {one["name"]: ([int(port) for port in one["ports"]], one["from"]) for one in services if one["from"]}


def test_each_part_is_reached_by_those_that_need_it() -> None:
    edges, apps = ["10.0.0.1", "10.0.0.2"], ["10.0.0.3", "10.0.0.4"]
    assert open_to("edge2") == {"sites": ([80, 443], ["anywhere"])}
    assert open_to("edge1", nginx_http3=True)["sites by HTTP/3"] == ([443], ["anywhere"])
    assert open_to("web1") == {"sites for the edge": ([443], edges)}
    assert open_to("web1", quintet_edge_to_apps="plain") == {"sites for the edge": ([80], edges)}
    assert open_to("db1") == {"PostgreSQL": ([5432], apps)}
    assert open_to("db1", quintet_database_pool=True) == {"PostgreSQL": ([5432, 6432], apps)}
    with_layer = [{**ENTRY, "name": "chat", "asgi": "x:y", "channel_layer_port": 26379}, *APPS]
    assert open_to("redis1", django_apps=with_layer) == {"Redis": ([26379], apps)}
    peers = evaluate("{{ firewall_peers }}", groups=PARTS, hostvars=HOSTS)
    assert sorted(peers) == [*edges, *apps, "10.0.0.5", "10.0.0.6"]


def test_of_a_site_on_one_host_only_its_pages_are_open() -> None:
    alone = {"groups": {part: ["web1"] for part in PARTS}, "hostvars": {"web1": {}}}
    assert open_to("web1", **alone) == {"sites": ([80, 443], ["anywhere"])}
    assert evaluate("{{ firewall_peers }}", **alone) == []


def test_without_tls_the_edge_asks_by_http_and_nothing_else_changes() -> None:
    asked = "{{ [topology.tls, app_port, django_app_gate] }}"
    given = {"groups": PARTS, "hostvars": HOSTS, "inventory_hostname": "web1"}
    assert evaluate(asked, **given) == [True, 443, "ssl_reject_handshake on;"]
    assert evaluate(asked, **given, quintet_edge_to_apps="plain") == [False, 80, "return 444;"]


@pytest.mark.parametrize(("tls", "edges", "refused"), [("acme", 2, True), ("acme", 1, False), ("provided", 2, False)])
def test_an_authority_that_asks_at_the_names_is_not_for_several_edges(tls: str, edges: int, refused: bool) -> None:
    task = next(
        t for t, _ in tasks([play("site.yml", "Read what is known about the hosts")]) if "ACME" in t.get("name", "")
    )
    apps = [{**ENTRY, "name": "shop", "tls": tls}]
    given = {"groups": {**PARTS, "edge": PARTS["edge"][:edges]}, "hostvars": HOSTS, "django_apps": apps}
    condition = "{{ " + task["ansible.builtin.assert"]["that"] + " }}"
    assert evaluate(condition, **given, by_acme=evaluate(task["vars"]["by_acme"], **given)) is not refused


def test_a_late_app_is_told_of_by_its_own_host_before_the_edge_gives_it_up() -> None:
    (task,) = DataLoader().load_from_file(str(FOLDER / "tasks/edge_site.yml"), trusted_as_template=True)
    given = task["vars"]
    for app, times in (({}, [65, 80]), ({"nginx": {"http_timeout": 300, "websocket_timeout": "90"}}, [305, 95])):
        told = [given["nginx_site_http_timeout"], given["nginx_site_websocket_timeout"]]
        assert [int(evaluate(time, django_app=app)) for time in told] == times


DATABASE_APART: dict[str, Any] = {
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
    assert evaluate(wanted, **given, **DATABASE_APART) == ["data", True, timeouts]
    # Where the app is on the same host, it is the owner, and migrates as who it is.
    assert evaluate(wanted, **given) == ["schema", False, {}]
    assert evaluate("{{ postgresql_client_databases }}", **DATABASE_APART, django_apps=apps) == ["peer", "word", "back"]
    assert evaluate("{{ postgresql_client_databases }}", django_apps=apps) == []


def test_each_app_host_gets_a_certificate_for_the_owner_of_each_database() -> None:
    certificates = task_of(play("site.yml", "Give the hosts certificates of the inventory's own authority"), "own the")
    for host, names in (("web1", ["peer", "word", "back"]), ("db1", [])):
        found = evaluate(certificates["loop"], inventory_hostname=host, **DATABASE_APART)
        assert [app["name"] for app in found] == names
    assert evaluate(certificates["loop"], inventory_hostname="web1") == []


def test_connections_are_counted_where_the_database_is_apart() -> None:
    counted = "{{ [postgresql_needed_connections, postgresql_needed_connections_sum] }}"
    count, said = evaluate(counted, **DATABASE_APART)
    # Three apps with a database, on one host and on one that may come, and administration.
    assert count == 2 * 3 * 40 + 13
    assert said.count("web1") == 3
    assert evaluate(counted) == [0, ""]


def test_a_pool_is_a_choice_and_before_a_database_on_another_host_only() -> None:
    chosen = "{{ [database_is_pooled, django_app_database_pool_port] }}"
    assert evaluate(chosen, **DATABASE_APART) == [False, 0]
    assert evaluate(chosen, **DATABASE_APART, quintet_database_pool=True) == [True, 6432]
    assert evaluate(chosen, **DATABASE_APART, quintet_database_pool=True, pgbouncer_port=7000) == [True, 7000]
    assert evaluate(chosen, quintet_database_pool=True) == [False, 0]
    pools = evaluate("{{ pgbouncer_databases }}", **DATABASE_APART, quintet_database_pool=True)
    assert pools["word"] == {"users": ["word_1", "word_2"], "pool_size": 20}
    assert [*pools] == ["peer", "word", "back"]
    assert evaluate("{{ [pgbouncer_listen_addresses, pgbouncer_clients] }}", **DATABASE_APART) == [
        ["10.0.0.2"],
        ["10.0.0.1"],
    ]
    assert (
        evaluate("{{ postgresql_needed_connections }}", **DATABASE_APART, quintet_database_pool=True)
        == 3 * 40 + 2 * 3 * 4 + 13
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


APART = {
    "groups": {"edge": ["edge1"], "app": ["app1", "app2"]},
    "inventory_hostname": "edge1",
}


def cluster(*taking_part: str) -> dict[str, Any]:
    """Return hostvars of an edge and two app hosts, of which some are in the run."""
    hosts = {"edge1": "10.0.0.1", "app1": "10.0.0.11", "app2": "10.0.0.12"}
    return {
        name: {
            "inventory_hostname": name,
            "ansible_host": address,
            **({"quintet_takes_part": True} if name in taking_part else {}),
        }
        for name, address in hosts.items()
    }


@pytest.mark.parametrize(
    ("taking_part", "left_out", "may"),
    [
        (("edge1", "app1", "app2"), [], True),
        (("edge1", "app1"), ["app2"], True),
        (("app1",), ["app2"], False),
        (("app1", "app2"), [], True),
        # A run that has to do with no app leaves the edge as it is.
        ((), [], True),
    ],
)
def test_an_app_host_is_left_out_with_the_edge_knowing_or_not_at_all(
    taking_part: tuple[str, ...], left_out: list[str], may: bool
) -> None:
    given = {**APART, "hostvars": cluster(*taking_part)}
    assert evaluate("{{ app_hosts_left_out }}", **given) == left_out
    (check,) = (
        task
        for task in DataLoader().load_from_file(str(FOLDER / "tasks/take_part.yml"), trusted_as_template=True)
        if "Refuse" in task["name"]
    )
    assert evaluate("{{ " + check["ansible.builtin.assert"]["that"] + " }}", **check["vars"], **given) is may


def test_a_site_on_one_host_has_nobody_to_leave_out() -> None:
    hosts = {name: {**variables, "ansible_host": name} for name, variables in cluster("app1").items()}
    groups = {"edge": ["app1"], "app": ["app1"]}
    assert evaluate("{{ app_hosts_left_out }}", **{**APART, "groups": groups, "hostvars": hosts}) == []


SITE_NOW = """
upstream shop-http {
    zone shop-http 64k;
    server 10.0.0.11:443 max_conns=256 max_fails=1;
    server 10.0.0.12:443 max_conns=256 down;
}
upstream shop-probe-1 { server 10.0.0.12:443; }
"""


def on_the_edge(file: str, now: str, *taking_part: str, **given: Any) -> dict[str, Any]:
    """Return the variables of the one task of a file, on an edge whose sites are `now`, in a run of some hosts."""
    (task,) = DataLoader().load_from_file(str(FOLDER / "tasks" / file), trusted_as_template=True)
    sites = {"edge_sites": {"stdout": now}} if taking_part else {}
    return {**APART, **sites, **task["vars"], "hostvars": cluster(*taking_part), **given}


@pytest.mark.parametrize(
    ("now", "taking_part", "ready", "down"),
    [
        # Before the switch: as they are.
        (SITE_NOW, ("edge1", "app1", "app2"), [], [False, True]),
        (SITE_NOW, ("edge1", "app1", "app2"), ["app1", "app2"], [False, False]),
        (SITE_NOW.replace("443 max_conns=256 max", "443 down max"), ("edge1", "app1"), [], [True, True]),
        (SITE_NOW, ("edge1", "app1"), [], [False, True]),
        (SITE_NOW.replace(" down", ""), ("edge1", "app1"), ["app1"], [False, True]),
        # A site that is new there, or has been on one host until now.
        ("", ("edge1", "app1", "app2"), [], [True, True]),
        ("upstream shop-http {\n    server unix:/srv/shop;\n}\n", ("edge1", "app1", "app2"), [], [True, True]),
    ],
)
def test_the_edge_asks_who_is_ready_and_nobody_who_misses_a_change(
    now: str, taking_part: tuple[str, ...], ready: list[str], down: list[bool]
) -> None:
    given = on_the_edge("edge_site.yml", now, *taking_part, app_hosts_ready=ready)
    servers = evaluate("{{ nginx_site_http_servers }}", **given, django_app={"name": "shop", "asgi": "x"})
    assert [one["server"] for one in servers] == ["10.0.0.11:443", "10.0.0.12:443"]
    assert [one["down"] for one in servers] == down
    assert evaluate("{{ nginx_site_probe_servers }}", **given, django_app={}) == {
        "10.0.0.11": "10.0.0.11:443",
        "10.0.0.12": "10.0.0.12:443",
    }


@pytest.mark.parametrize(
    ("now", "taking_part", "let_in"),
    [
        (SITE_NOW, ("edge1", "app1", "app2"), ["shop"]),
        (SITE_NOW.replace(" down", ""), ("edge1", "app1", "app2"), []),
        # app2 is away still.
        (SITE_NOW, ("edge1", "app1"), []),
        ("", ("edge1", "app1"), ["shop"]),
        # The edge is in no play that has looked.
        (SITE_NOW, (), []),
    ],
)
def test_who_was_left_out_is_let_in_by_a_run_that_switches_it(
    now: str, taking_part: tuple[str, ...], let_in: list[str]
) -> None:
    given = on_the_edge("let_in.yml", now, *taking_part, changed=[{"name": "shop"}])
    assert evaluate("{{ waiting }}", **given) == let_in
    alone = {"groups": {"edge": ["app1"], "app": ["app1"]}}
    assert evaluate("{{ waiting }}", **{**given, **alone}) == []


@pytest.mark.parametrize("playbook", ["site.yml", "deploy.yml", "rollback.yml", "rotate.yml"])
def test_what_switches_hosts_lets_them_in_last_of_all(playbook: str) -> None:
    plays = yaml.safe_load((FOLDER / playbook).read_text())
    assert "tasks/take_part.yml" in str(plays[0])
    # What goes back needs no source.
    assert ("tasks/check_apps.yml" in str(plays[0])) is (playbook != "rollback.yml")
    (last,) = plays[-1]["tasks"]
    assert (plays[-1]["hosts"], last["ansible.builtin.import_tasks"]) == ("edge", "tasks/let_in.yml")
    assert "'tasks_from': '" + ("rollback" if playbook == "rollback.yml" else "activate") in str(plays[-2])


def test_only_hosts_that_serve_one_site_together_agree_who_does_what_is_done_once() -> None:
    hosts = {f"app{number}": {"ansible_host": f"10.0.0.{number}"} for number in (1, 2)} | {
        "db1": {"ansible_host": "10.0.0.9"}
    }
    together = {"app": ["app1", "app2"], "database": ["db1"]}
    assert evaluate("{{ django_app_hosts }}", hostvars=hosts, groups=together) == ["app1", "app2"]
    each = {"app": ["app1", "app2"], "database": ["app1", "app2"]}
    assert evaluate("{{ django_app_hosts }}", hostvars=hosts, groups=each) == []
    assert evaluate("{{ django_app_hosts }}", hostvars=hosts, groups={"app": ["app1"]}) == []


SEVERAL = {
    "hostvars": {
        name: {"ansible_host": f"10.0.0.{number}"} for number, name in enumerate(("edge1", "app1", "app2"), 1)
    },
    "groups": {"edge": ["edge1"], "app": ["app1", "app2"]},
}


def test_app_hosts_of_one_site_know_each_other_and_those_of_several_do_not() -> None:
    assert evaluate("{{ django_app_hosts }}", **SEVERAL) == ["app1", "app2"]
    each = {"hostvars": SEVERAL["hostvars"], "groups": {"edge": ["app1", "app2"], "app": ["app1", "app2"]}}
    assert evaluate("{{ django_app_hosts }}", **each) == []


@pytest.mark.parametrize(
    ("change", "paths"),
    [
        ({}, {}),
        ({"shared_files": {"kind": "mount"}}, {}),
        ({"shared_files": {"kind": "one_host", "host": "app2"}}, {"/media/": ["10.0.0.3:443"]}),
        (
            {"shared_files": {"kind": "one_host", "host": "app1", "upload_paths": ["/up/"]}, "media_url": "/files/"},
            {"/files/": ["10.0.0.2:443"], "/up/": ["10.0.0.2:443"]},
        ),
        (
            {"shared_files": {"kind": "one_host", "host": "app1"}, "nginx": {"media_url": "https://cdn.test/"}},
            {},
        ),
    ],
)
def test_the_edge_sends_files_to_the_host_that_has_them(change: dict[str, Any], paths: dict[str, list[str]]) -> None:
    app = {**ENTRY, "name": "shop", **change}
    assert evaluate("{{ pinned_paths }}", django_app=app, **SEVERAL) == paths


def test_apps_are_checked_for_the_hosts_that_they_run_on() -> None:
    check = DataLoader().load_from_file(str(FOLDER / "tasks/check_apps.yml"), trusted_as_template=True)[0]
    assert evaluate(check["quintet.django.check_apps"]["hosts"], **SEVERAL) == ["app1", "app2"]


@pytest.mark.parametrize(
    ("servers", "gone"),
    [
        (["10.0.0.11:443", "10.0.0.12:443"], []),
        (["10.0.0.11:443", "10.0.0.12:443", "10.0.0.13:443"], ["shop"]),
        # A site on one host that becomes one on several goes on until these serve.
        (["unix:/srv/shop/current/run/gunicorn.sock"], []),
        ([], []),
    ],
)
def test_the_edge_leaves_a_host_that_is_gone_before_others_close_to_it(servers: list[str], gone: list[str]) -> None:
    plays = yaml.safe_load((FOLDER / "site.yml").read_text())
    names = [one["name"] for one in plays]
    leaving = names.index("Leave out the app hosts that are no longer in the inventory")
    assert leaving < names.index("Let in what the hosts' parts need, and nothing else")
    assert leaving < names.index("Set up PostgreSQL")
    task = task_of(play("site.yml", "Leave out the app hosts that are no longer in the inventory"), "without them")
    lines = "".join(f"    server {server} max_conns=256 max_fails=1;\n" for server in servers)
    now = f"upstream other-http {{\n    server 10.9.9.9:443;\n}}\nupstream shop-http {{\n{lines}}}\n" if servers else ""
    given = {**APART, "hostvars": cluster("edge1", "app1", "app2"), "django_apps": [{**ENTRY, "name": "shop"}]}
    left = evaluate(task["loop"], **task["vars"], **given, edge_sites={"stdout": now})
    assert [app["name"] for app in left] == gone
