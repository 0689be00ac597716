"""The schema of an app's dictionary: what is refused, and with which words."""

from typing import Any

import pytest
import yaml
from ansible_collections.quintet.django.plugins.module_utils.apps import load_schema, normalize, once_problems, problems

SCHEMA = load_schema()
SHOP: dict[str, Any] = {"name": "shop", "domains": ["shop.example.org"], "source": {"directory": "/srv/src"}}

BY_PASSWORD: dict[str, Any] = {"database_login": "password"}
MAIL: dict[str, Any] = {"name": "mail", "command": "celery -A config worker"}
NIGHTLY: dict[str, Any] = {"name": "nightly", "command": "python manage.py clearsessions", "calendar": "daily"}


def said(*apps: Any) -> str:
    return "\n".join(problems(list(apps), "django_apps", SCHEMA))


def test_a_good_app_has_no_problems() -> None:
    assert said(SHOP, {**SHOP, "name": "chat", "domains": ["chat.example.org"]}) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"nmae": "x"}, "django_apps[0].nmae: there is no such setting. Did you mean 'name'?"),
        (
            {"source": {"directroy": "/x"}},
            "django_apps[0].source.directroy: there is no such setting. Did you mean 'directory'?",
        ),
        ({"probes": [{"pth": "/"}]}, "django_apps[0].probes[0].pth: there is no such setting. Did you mean 'path'?"),
        (
            {"gunicorn": {"thread": 4}},
            "django_apps[0].gunicorn.thread: there is no such setting. Did you mean 'threads'?",
        ),
        (
            {"daphne": {"process": 4}},
            "django_apps[0].daphne.process: there is no such setting. Did you mean 'processes'?",
        ),
        ({"nginx": {"keepalives": 4}}, "django_apps[0].nginx.keepalives: there is no such setting. Did you mean"),
        (
            {"redis": {"maxmem": "1gb"}},
            "django_apps[0].redis.maxmem: there is no such setting. Did you mean 'maxmemory'?",
        ),
        ({"name": None}, "django_apps[0]: missing required arguments: name."),
        ({"name": "Shop"}, "django_apps[0].name: 'Shop' can't name an app."),
        ({"name": "a" * 25}, "can't name an app"),
        ({"name": "postgres"}, "django_apps[0].name: 'postgres' is a user that the system"),
        ({"user": "www-data"}, "django_apps[0].user: 'www-data' is a user that the system"),
        ({"user": "9lives"}, "django_apps[0].user: '9lives' can't name a user."),
        ({"domains": ["https://x.org"]}, "django_apps[0].domains: 'https://x.org' is no host name."),
        ({"wsgi": "config.wsgi"}, "django_apps[0].wsgi: 'config.wsgi' names no application."),
        ({"environment": {"A-B": "1"}}, "django_apps[0].environment: 'A-B' can't name a variable."),
        ({"environment": {"A": "1\n2"}}, "django_apps[0].environment.A: is not one line of text."),
        ({"secrets": {"A": "1\r"}}, "django_apps[0].secrets.A: is not one line of text."),
        (
            {"secrets": {"SECRET_KEY": None}},
            'secrets.SECRET_KEY: says nothing. Write "" for a secret that is generated',
        ),
        ({"environment": {"A": None}}, 'environment.A: says nothing. Write "" for an empty text, or remove it.'),
        (
            {"secrets": {"JWT_KEY": ""}, "secret_fallbacks": {"names": ["SECRET_KEY", "JTW_KEY"]}},
            "django_apps[0].secret_fallbacks.names: 'JTW_KEY' is none of the app's secrets",
        ),
        ({"environment": {"STATIC_ROOT": "/"}}, "environment.STATIC_ROOT: the roles set this variable themselves."),
        ({"environment": {"K": "1"}, "secrets": {"K": "2"}}, "django_apps[0].environment.K: is in secrets too."),
        ({"tls": "on"}, "django_apps[0]: value of tls must be one of: off, self_signed, provided, acme"),
        (
            {"tls": "acme", "domains": ["a.org", "*.a.org"]},
            "django_apps[0].domains: '*.a.org' can get no certificate by tls: acme",
        ),
        (
            {"tls": "acme", "domains": ["192.0.2.7"]},
            "django_apps[0].domains: '192.0.2.7' can get no certificate by tls: acme",
        ),
        ({"shared": ["../x"]}, "django_apps[0].shared: '../x' can't be a directory"),
        ({"shared": ["/etc"]}, "django_apps[0].shared: '/etc' can't be a directory"),
        ({"shared": ["media", "media/private"]}, "django_apps[0].shared: 'media/private' lies in 'media'"),
        (
            {"shared_files": {"kind": "nfs"}},
            "value of kind must be one of: , one_host, mount, object_storage, got: nfs",
        ),
        ({"shared_files": {"hsot": "app1"}}, "shared_files.hsot: there is no such setting. Did you mean 'host'?"),
        ({"shared_files": {"kind": "one_host"}}, "django_apps[0].shared_files.host: is missing. Name the app host"),
        (
            {"shared_files": {"host": "app1"}},
            "shared_files.host: is for kind one_host, and the kind is not said. Remove it, or write kind: one_host.",
        ),
        (
            {"shared_files": {"kind": "mount", "upload_paths": ["/upload/"]}},
            "shared_files.upload_paths: is for kind one_host, and the kind is mount.",
        ),
        (
            {"shared_files": {"kind": "object_storage", "source": "nas:/x"}},
            "shared_files.source: is for kind mount, and the kind is object_storage.",
        ),
        (
            {"shared": ["media", "cache"], "shared_files": {"kind": "mount", "host_only": ["cache"]}},
            "shared_files.host_only: is for kind one_host or object_storage, and the kind is mount.",
        ),
        (
            {"shared_files": {"kind": "object_storage"}},
            "django_apps[0].shared: 'media' is a directory on each host, and the app's files are in object storage. Remove it",
        ),
        (
            {"shared": [], "shared_files": {"kind": "object_storage", "host_only": ["cache"]}},
            "shared_files.host_only: 'cache' is no directory of the app's",
        ),
        (
            {"shared_files": {"kind": "one_host", "host": "a", "host_only": ["cache"]}},
            "shared_files.host_only: 'cache' is none of the directories in django_apps[0].shared. Name one of media.",
        ),
        (
            {"shared_files": {"kind": "object_storage", "host_only": ["media"]}},
            "shared_files.host_only: 'media' is what visitors are shown at /media/",
        ),
        (
            {"shared_files": {"kind": "one_host", "host": "a", "upload_paths": ["/"]}},
            "shared_files.upload_paths: '/' is no path below /.",
        ),
        (
            {"shared_files": {"kind": "one_host", "host": "a", "upload_paths": ["/x y/"]}},
            "shared_files.upload_paths: '/x y/' is no path below /.",
        ),
        (
            {"shared_files": {"kind": "one_host", "host": "a", "upload_paths": ["/ws/up/"]}},
            "shared_files.upload_paths: '/ws/up/' is for WebSockets.",
        ),
        (
            {"shared_files": {"kind": "one_host", "host": "a", "upload_paths": ["/media/up/"]}},
            "shared_files.upload_paths: '/media/up/' is for files that Nginx sends.",
        ),
        (
            {"shared_files": {"kind": "mount", "source": "nas:/my files"}},
            "shared_files.source: 'nas:/my files' is not one word",
        ),
        (
            {"shared_files": {"kind": "mount", "source": "nas:/x", "options": ["%h"]}},
            "shared_files.options: '%h' is not one word",
        ),
        (
            {"shared_files": {"kind": "mount", "options": ["nosuid"]}},
            "shared_files.options: are for a file system that the roles mount.",
        ),
        ({"static_url": "static"}, "django_apps[0].static_url: 'static' is no path."),
        ({"websocket_paths": ["ws"]}, "django_apps[0].websocket_paths: 'ws' is no path."),
        ({"keep_generations": 1}, "django_apps[0].keep_generations: 1 leaves nothing to go back to."),
        ({"secrets_as": "file"}, "value of secrets_as must be one of"),
        ({"workers": [{"name": "mail"}]}, "missing required arguments: command found in workers"),
        ({"workers": [{**MAIL, "name": "Mail"}]}, "django_apps[0].workers[0].name: 'Mail' can't name a unit."),
        ({"workers": [MAIL, MAIL]}, "django_apps[0].workers[1].name: 'mail' is already one of the workers."),
        ({"timers": [NIGHTLY, NIGHTLY]}, "django_apps[0].timers[1].name: 'nightly' is already one of the timers."),
        ({"workers": [{**MAIL, "command": "a\nb"}]}, "django_apps[0].workers[0].command: is not one line."),
        ({"workers": [{**MAIL, "command": " "}]}, "django_apps[0].workers[0].command: is not one line."),
        ({"workers": [{**MAIL, "memory_max": "much"}]}, "workers[0].memory_max: 'much' is no amount of memory."),
        ({"workers": [{**MAIL, "memory_max": "0"}]}, "workers[0].memory_max: '0' is no amount of memory."),
        ({"workers": [{**MAIL, "memory_max": "250%"}]}, "workers[0].memory_max: '250%' is no amount of memory."),
        ({"workers": [{**MAIL, "tasks_max": 0}]}, "workers[0].tasks_max: 0 lets nothing run."),
        (
            {"timers": [{**NIGHTLY, "oom_score_adjust": 1001}]},
            "timers[0].oom_score_adjust: 1001 is no rank for the kernel.",
        ),
        ({"commands": {"memory_max": "x"}}, "django_apps[0].commands.memory_max: 'x' is no amount of memory."),
        (
            {"workers": [{**MAIL, "runs_on": "one_host", "processes": 2}]},
            "workers[0].processes: 2 of 'mail', and runs_on: one_host is for one.",
        ),
        (
            {"timers": [{**NIGHTLY, "runs_on": "all"}]},
            "value of runs_on must be one of: every_host, one_host, got: all",
        ),
        ({"workers": [{**MAIL, "stop_signal": "TERM"}]}, "workers[0].stop_signal: 'TERM' is no signal."),
        ({"workers": [{**MAIL, "processes": 0}]}, "workers[0].processes: 0 is not above 0."),
        ({"workers": [{**MAIL, "stop_seconds": 0}]}, "workers[0].stop_seconds: 0 is not above 0."),
        ({"workers": [{**MAIL, "stop_seconds": "0"}]}, "workers[0].stop_seconds: 0 is not above 0."),
        ({"workers": [{**MAIL, "stop_seconds": 4000}]}, "workers[0].stop_seconds: 4000 is longer than a switch waits."),
        ({"timers": [{**NIGHTLY, "calendar": ""}]}, "django_apps[0].timers[0].calendar: says no time."),
        ({"timers": [{**NIGHTLY, "timeout_seconds": 0}]}, "timers[0].timeout_seconds: 0 is not above 0."),
        ({"hooks": {"build": [{"command": " "}]}}, "django_apps[0].hooks.build[0].command: is empty."),
        ({"hooks": {"biuld": []}}, "django_apps[0].hooks.biuld: there is no such setting. Did you mean 'build'?"),
        ({"hooks": {"build": [{"command": "a", "timeout_seconds": -1}]}}, "hooks.build[0].timeout_seconds: -1 is not"),
        ({"probes": [{"path": "/", "timeout_seconds": -1}]}, "probes[0].timeout_seconds: -1 is not above 0."),
        ({"probes": [{"path": "healthz"}]}, "probes[0].path: 'healthz' is no path."),
        ({"probes": [{"path": "/", "method": "GET /x"}]}, "probes[0].method: 'GET /x' is no method of HTTP."),
        ({"probes": [{"path": "/", "kind": "websocket", "send": [1]}]}, "probes[0].send: is neither a JSON object nor"),
        ({"database_login": "trust"}, "value of database_login must be one of: peer, password"),
        (
            {**BY_PASSWORD, "database": False},
            "django_apps[0].database_login: password is for the database that the roles",
        ),
        ({**BY_PASSWORD, "environment": {"DATABASE_URL": "x"}}, "[0].environment.DATABASE_URL: with database_login:"),
        ({**BY_PASSWORD, "secrets": {"DATABASE_URL": ""}}, "[0].secrets.DATABASE_URL: with database_login: password"),
        (
            {**BY_PASSWORD, "environment": {"DATABASE_PASSWORD": "x"}},
            "[0].environment.DATABASE_PASSWORD: with database",
        ),
        ({**BY_PASSWORD, "user": "my-shop"}, "django_apps[0].user: 'my-shop' can't name a role of PostgreSQL"),
        ({**BY_PASSWORD, "secrets": {"DATABASE_PASSWORD": "short"}}, "secrets.DATABASE_PASSWORD: is shorter than 16"),
        ({**BY_PASSWORD, "secrets": {"DATABASE_PASSWORD": "ü" * 20}}, "secrets.DATABASE_PASSWORD: is shorter than 16"),
        ({"dump": {"keep": 0}}, "django_apps[0].dump.keep: 0 is not above 0."),
        ({"dump": {"max_mb": 0}}, "django_apps[0].dump.max_mb: 0 is not above 0."),
        ({"worker_stay_seconds": 0}, "django_apps[0].worker_stay_seconds: 0 is not above 0."),
        ({"worker_stay_seconds": 90}, "worker_stay_seconds: 90 is longer than a switch waits."),
        ({"migration_lock_seconds": 0}, "django_apps[0].migration_lock_seconds: 0 is not above 0."),
        ({"static_pool": {"days": 0}}, "django_apps[0].static_pool.days: 0 is not above 0."),
        ({"static_pool": {"max_mb": 0}}, "django_apps[0].static_pool.max_mb: 0 is not above 0."),
    ],
)
def test_bad_input_is_named_with_its_place(change: dict[str, Any], words: str) -> None:
    app = {key: value for key, value in {**SHOP, **change}.items() if value is not None}
    assert words in said(app)


def test_a_domain_belongs_to_one_app() -> None:
    other = {**SHOP, "name": "chat", "domains": ["chat.example.org"], "aliases": ["SHOP.example.org"]}
    assert said(SHOP, other) == (
        "django_apps[1].aliases: 'SHOP.example.org' is already a domain of app 'shop'.\n"
        "Give each domain to one app only: remove it from 'shop' or from 'chat' in your inventory."
    )


def test_two_apps_cannot_share_a_name_or_a_user() -> None:
    assert "django_apps[1].name: 'shop' is already the name of django_apps[0]" in said(SHOP, {**SHOP, "domains": []})
    assert "django_apps[1].user: 'shop' is already" in said(SHOP, {**SHOP, "name": "b", "user": "shop", "domains": []})


def test_the_user_of_an_app_has_no_power_over_another() -> None:
    # It would be the owner of the other's database, or write its next code.
    blog = {**SHOP, "name": "blog", "domains": []}
    for user, words in (
        ("shop", "django_apps[1].user: 'shop' is who owns the database of django_apps[0]. Choose another user."),
        (
            "web-build",
            "django_apps[1].user: 'web-build' is who builds the code of django_apps[0]. Choose another user.",
        ),
    ):
        assert words in said({**SHOP, "user": "web"}, {**blog, "user": user})
    assert said({**SHOP, "user": "web"}, {**blog, "user": "blog"}) == ""


def test_the_logins_of_an_app_are_no_other_apps_roles() -> None:
    shop = {**SHOP, **BY_PASSWORD}
    other = {**SHOP, "domains": ["chat.example.org"]}
    assert said(shop, {**other, "name": "shop_3"}) == ""
    assert said({**SHOP}, {**other, "name": "shop_1"}) == ""
    assert said(shop, {**other, "name": "shop_1", "database": False}) == ""
    for change in ({"name": "shop_1"}, {"name": "shop_2", "user": "web"}, {"name": "web", "user": "shop_2"}):
        words = said(shop, {**other, **change})
        assert "django_apps[0].database_login: its login 'shop_" in words
        assert "of django_apps[1], too. Give one of them another user." in words


def test_a_password_that_is_refused_is_not_told() -> None:
    assert "hunter2" not in said({**SHOP, **BY_PASSWORD, "secrets": {"DATABASE_PASSWORD": "hunter2"}})


def test_what_is_no_list_or_no_dictionary() -> None:
    assert problems("shop", "django_apps", SCHEMA) == [
        "django_apps: is no list. Write one entry with a name for each app."
    ]
    assert "django_apps[0]: is no dictionary" in said("shop")


def test_defaults_are_filled_in_at_every_depth() -> None:
    app = normalize({**SHOP, "probes": [{"path": "/x"}]}, SCHEMA)
    assert app["user"] == "shop"
    assert app["wsgi"] == "config.wsgi:application"
    assert app["probes"][0]["timeout_seconds"] == 10
    assert app["dump"] == {"enabled": True, "keep": 3, "max_mb": 10240}
    assert app["hooks"]["on_failure"] == []


@pytest.mark.parametrize(
    ("given", "tls", "scheme"),
    [
        ({}, "off", "http"),
        ({"tls": False}, "off", "http"),  # what YAML makes of off
        ({"tls": "self_signed"}, "self_signed", "https"),
        ({"tls": "off", "nginx": {"tls": "provided"}}, "provided", "https"),
        ({"tls": "provided", "nginx": {"tls": False}}, "off", "http"),
    ],
)
def test_probes_come_by_the_way_that_people_come(given: dict[str, Any], tls: str, scheme: str) -> None:
    assert said({**SHOP, **given}) == ""
    app = normalize({**SHOP, **given, "probes": [{"path": "/x"}, {"path": "/y", "scheme": "http"}]}, SCHEMA)
    assert app["tls"] == tls
    first, second = app["probes"]
    assert (first["scheme"], first["origin"]) == (scheme, f"{scheme}://shop.example.org")
    assert (second["scheme"], second["origin"]) == ("http", "http://shop.example.org")


def test_a_hook_without_a_name_is_called_by_its_command() -> None:
    hooks = {"build": [{"command": "npm ci\n"}, {"command": "npm run build", "name": "assets"}]}
    found = normalize({**SHOP, "hooks": hooks}, SCHEMA)["hooks"]["build"]
    assert [hook["name"] for hook in found] == ["npm ci", "assets"]


def test_a_worker_and_a_timer_may_have_the_same_name() -> None:
    assert said({**SHOP, "workers": [MAIL], "timers": [{**NIGHTLY, "name": "mail"}]}) == ""


# ---- what one of several hosts does ------------------------------------------------------------------------------------

HOSTS = ["app1", "app2"]


def refused(app: dict[str, Any], hosts: list[str] = HOSTS, address: str = "") -> list[str]:
    """Return the entries that could not run on one of the hosts."""
    found = once_problems([normalize({**SHOP, **app}, SCHEMA)], ["django_apps[0]"], hosts, address)
    return [problem.partition(".runs_on:")[0] for problem in found]


def test_by_itself_a_timer_runs_on_one_host_and_a_worker_on_every() -> None:
    app = normalize({**SHOP, "workers": [MAIL], "timers": [NIGHTLY]}, SCHEMA)
    assert (app["workers"][0]["runs_on"], app["timers"][0]["runs_on"]) == ("every_host", "one_host")


def test_hosts_without_a_database_for_all_cannot_agree() -> None:
    busy = {"workers": [MAIL, {**MAIL, "name": "beat", "runs_on": "one_host"}], "timers": [NIGHTLY]}
    both = ["django_apps[0].workers[1]", "django_apps[0].timers[0]"]
    assert refused(busy) == both
    assert refused({**busy, "database": False}, address="10.0.0.21") == both
    assert refused(busy, address="10.0.0.21") == []
    assert refused(busy, hosts=["app1"]) == []
    assert refused({"timers": [{**NIGHTLY, "runs_on": "every_host"}]}) == []
    (told,) = once_problems([normalize({**SHOP, "timers": [NIGHTLY]}, SCHEMA)], ["django_apps[0]"], HOSTS, "")
    assert "'nightly' is to run on one host, and app1, app2 share no PostgreSQL for 'shop'" in told
    for choice in ("group database", "DATABASE_URL", "DATABASE_DIRECT_URL", "runs_on: every_host"):
        assert choice in told


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("postgresql://shop:p@db.example.org/shop", True),
        ("postgres://db:5432/shop?sslmode=require", True),
        ("postgis://shop@10.0.0.9/shop", True),
        ("postgresql:///shop?host=db.example.org", True),
        ("postgresql://shop@%2Fvar%2Frun%2Fpostgresql/shop", False),
        ("postgresql:///shop", False),
        ("postgresql:///shop?host=/run/postgresql", False),
        ("postgresql://shop@localhost/shop", False),
        ("postgresql://shop@127.0.0.1:5432/shop", False),
        ("postgresql://shop@[::1]/shop", False),
        ("postgresql://[broken/shop", False),
        ("mysql://shop@db/shop", False),
        ("sqlite:////srv/shop/shared/media/db", False),
    ],
)
@pytest.mark.parametrize("kind", ["environment", "secrets"])
def test_a_database_of_the_apps_own_counts_by_its_address(kind: str, url: str, may: bool) -> None:
    app = {"timers": [NIGHTLY], "database": False, kind: {"DATABASE_URL": url}}
    assert (refused(app, address="10.0.0.21") == []) is may
    direct = {**app, kind: {"DATABASE_URL": "sqlite:///x", "DATABASE_DIRECT_URL": url}}
    assert (refused(direct) == []) is may


# ---- files on several hosts -----------------------------------------------------------------------------------------


def said_on(hosts: list[str], **change: Any) -> str:
    return "\n".join(problems([{**SHOP, **change}], "django_apps", SCHEMA, hosts))


def test_on_several_hosts_an_app_must_say_how_they_share_its_files() -> None:
    told = said_on(HOSTS)
    assert told.startswith(
        "django_apps[0].shared_files: app 'shop' keeps files (shared: media) and runs on app1, app2, each"
    )
    offered = [line.strip() for line in told.splitlines() if line.strip().startswith("shared_files: {")]
    assert len(offered) == 3
    for line in offered:
        # As it stands there it is right, with what it says of the rest.
        change = yaml.safe_load(line)
        storage = change["shared_files"]["kind"] == "object_storage"
        assert said_on(HOSTS, **change, **({"shared": []} if storage else {})) == ""


@pytest.mark.parametrize("hosts", [[], ["app1"]])
def test_on_one_host_there_is_nothing_to_say_and_saying_it_is_allowed(hosts: list[str]) -> None:
    assert said_on(hosts) == ""
    for given in ({"kind": "one_host", "host": "app1", "upload_paths": ["/upload/"]}, {"kind": "mount"}):
        assert said_on(hosts, shared_files=given) == ""


def test_an_app_without_common_files_has_nothing_to_say() -> None:
    assert said_on(HOSTS, shared=[]) == ""
    assert said_on(HOSTS, shared=["cache"], shared_files={"kind": "object_storage", "host_only": ["cache"]}) == ""
    assert "keeps files (shared: invoices)" in said_on(HOSTS, shared=["invoices"])


@pytest.mark.parametrize("hosts", [["app2"], ["app2", "app3"]])
def test_the_host_with_the_files_must_be_there(hosts: list[str]) -> None:
    told = said_on(hosts, shared_files={"kind": "one_host", "host": "app1"})
    assert told.startswith("django_apps[0].shared_files.host: 'app1' is no host that the app runs on. Name one of app2")
