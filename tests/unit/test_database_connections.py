"""How many connections the apps of a site can hold, and how that is told."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.quintet.django.plugins.filter.database_connections import database_connections
from ansible_collections.quintet.django.plugins.module_utils.apps import load_schema, normalize
from rendering import Role

FACTS = {"processor_nproc": 2, "memtotal_mb": 4096}
HOSTS = {"app1": {"ansible_facts": FACTS}, "app2": {"ansible_facts": {"processor_nproc": 4, "memtotal_mb": 1024}}}
SHOP = {"name": "shop", "source": {"directory": "/x"}}


def needed(hosts: list[str], **app: Any) -> dict[str, Any]:
    found: dict[str, Any] = database_connections([normalize({**SHOP, **app}, load_schema())], hosts, HOSTS)
    return found


def test_threads_count_twice_and_a_host_more_and_administration_are_counted_in() -> None:
    found = needed(["app1"])
    # Two workers of eight threads and one for health, in two generations, and four commands.
    assert found["needed"] == 2 * (2 * 9 * 2 + 4) + 13
    assert found["sum"].splitlines() == [
        "shop on app1: 36 (Gunicorn 2 x 9 threads x 2 generations) + 4 (commands) = 40.",
        "With 40 for one app host more and 13 for administration: 93.",
    ]


@pytest.mark.parametrize(
    ("app", "count"),
    [
        ({"asgi": "config.asgi:application"}, 40 + 2 * 2),
        ({"asgi": "config.asgi:application", "daphne": {"processes": "3"}}, 40 + 3 * 2),
        ({"gunicorn": {"workers": 3, "threads": 4}}, 3 * 5 * 2 + 4),
        ({"gunicorn": {"workers": 3, "threads": 4, "reserved_paths": []}}, 3 * 4 * 2 + 4),
        ({"gunicorn": {"workers": 3, "threads": 4, "worker_class": "sync"}}, 3 * 2 + 4),
        ({"workers": [{"name": "mail", "command": "x", "processes": 2}]}, 40 + 2 * 4),
        ({"workers": [{"name": "mail", "command": "x", "database_connections": 9}]}, 40 + 9),
        ({"timers": [{"name": "mail", "command": "x", "calendar": "daily"}]}, 40 + 2),
        ({"database": False}, 0),
    ],
)
def test_each_process_counts(app: dict[str, Any], count: int) -> None:
    assert needed(["app1"], **app)["needed"] == 2 * count + 13


def test_the_largest_host_is_the_one_that_may_come() -> None:
    # Two workers of 512 MiB, eight threads each: as the other one.
    assert needed(["app2"])["needed"] == needed(["app1"])["needed"]
    four = {"gunicorn": {"workers": None}}
    assert needed(["app1", "app2"], **four)["needed"] == 40 + 40 + 40 + 13
    assert needed([])["needed"] == 13


@pytest.mark.parametrize("host", ["app1", "app2"])
def test_it_counts_what_the_roles_start(host: str) -> None:
    gunicorn = Role("gunicorn", ansible_facts=HOSTS[host]["ansible_facts"], django_app=SHOP)
    workers, threads = (int(gunicorn.evaluate(f"gunicorn_{name}")) for name in ("workers", "threads"))
    daphne = Role("daphne", ansible_facts=HOSTS[host]["ansible_facts"], django_app=SHOP)
    processes = int(daphne.evaluate("daphne_processes"))
    told = needed([host], asgi="config.asgi:application")["sum"]
    assert f"Gunicorn {workers} x {threads + 1} threads" in told
    assert f"Daphne {processes} x 2" in told


def test_a_pool_takes_the_place_of_threads_and_leaves_what_holds_locks() -> None:
    app = {
        "workers": [{"name": "mail", "command": "x", "processes": 3}],
        "timers": [{"name": "daily", "command": "x", "calendar": "daily"}],
        "database_pool_size": 30,
    }
    found = database_connections([normalize({**SHOP, **app}, load_schema())], ["app1", "app2"], HOSTS, pooled=True)
    # Two logins have a pool each; on each host three workers, a timer and four commands go past it.
    assert found["needed"] == 60 + 3 * 8 + 13
    assert found["sum"].splitlines() == [
        "The pool of shop: 30 x 2 logins = 60.",
        "shop on app1, past the pool: 3 (workers) + 1 (timers) + 4 (commands) = 8.",
        "shop on app2, past the pool: 3 (workers) + 1 (timers) + 4 (commands) = 8.",
        "With 8 for one app host more and 13 for administration: 97.",
    ]
    assert found["clients"] == needed(["app1", "app2"], **app)["needed"]


def test_a_host_that_nobody_has_asked_is_named() -> None:
    with pytest.raises(AnsibleFilterError, match=r"app3 has not been asked for its processor_nproc.*without --limit"):
        needed(["app3"])
    assert needed(["app3"], gunicorn={"workers": 1, "threads": 1})["needed"] == 2 * (2 * 2 + 4) + 13
