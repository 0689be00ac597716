"""The role django_app: what an app's dictionary becomes for its units, its builds and its neighbours."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ansible.template import trust_as_template
from ansible_collections.quintet.django.plugins.module_utils.controller import identity
from rendering import ROOT, Role, load

APP: dict[str, Any] = {"name": "shop", "domains": ["shop.test", "www.shop.test"], "source": {"directory": "src"}}
LIVE = {**APP, "asgi": "config.asgi:application"}
PLAN = {
    "generation": "1f0c2a9e-77aa01bc",
    "venv": "0123456789abcdef",
    "revision": 3,
}


def role(app: dict[str, Any], **more: Any) -> Role:
    return Role(
        "django_app",
        django_app=app,
        __django_app_plans={"shop": PLAN},
        __django_app_revision=3,
        role_path=str(ROOT / "roles/django_app"),
        gunicorn_rendered={"units": {}, "sockets": [], "services": [], "check": []},
        daphne_rendered={"units": {}, "sockets": [], "services": []},
        __django_app_rendered=trust_as_template("{{ __django_app_rendering }}"),
        **{"__django_app_secret_names": trust_as_template("{{ __django_app_secrets.keys() | sort }}"), **more},
    )


def environment(**change: Any) -> dict[str, str]:
    found: dict[str, str] = role({**LIVE, **change}).evaluate("__django_app_environment")
    return found


def test_an_app_with_channels_finds_its_database_and_its_channel_layer() -> None:
    assert environment() == {
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "ALLOWED_HOSTS": "shop.test,www.shop.test",
        "MEDIA_ROOT": "/srv/shop/shared/media",
        "DATABASE_URL": "postgresql://shop@%2Fvar%2Frun%2Fpostgresql/shop",
        "CHANNEL_LAYER_URL": "unix://shop@/run/redis-shop/redis.sock",
    }


def test_an_app_learns_whether_all_come_by_https() -> None:
    assert environment(tls="self_signed")["HTTPS_ONLY"] == "1"
    assert "HTTPS_ONLY" not in environment(tls="self_signed", nginx={"tls_redirect": 0})
    assert "HTTPS_ONLY" not in environment(tls=False)
    assert environment(tls="self_signed", environment={"HTTPS_ONLY": "0"})["HTTPS_ONLY"] == "0"


@pytest.mark.parametrize(
    ("change", "port", "tls_port"),
    [
        ({}, 80, None),
        ({"tls": "self_signed"}, None, 443),
        ({"tls": "self_signed", "nginx": {"tls_redirect": 0}}, 80, 443),
    ],
)
def test_a_switch_is_probed_by_the_ways_that_the_edge_has(
    change: dict[str, Any], port: int | None, tls_port: int | None
) -> None:
    tasks: Any = load(ROOT / "roles/django_app/tasks/prepare.yml")
    (edge,) = [
        task["vars"]["__django_app_probes"]["edge"] for task in tasks if "__django_app_probes" in task.get("vars", {})
    ]
    found = role({**LIVE, **change}, django_app_edge_port=80, edge=edge).evaluate("edge")
    assert found == {"addresses": ["127.0.0.1"], "own": False, "port": port, "tls_port": tls_port}
    addresses = ["10.0.0.1", "10.0.0.2"]
    found = role({**LIVE, **change}, django_app_edge_port=80, django_app_edge_addresses=addresses, edge=edge).evaluate(
        "edge"
    )
    assert found == {"addresses": addresses, "own": True, "port": port, "tls_port": tls_port}


def test_values_may_be_templates_and_numbers_may_be_text() -> None:
    # As in group_vars: evaluated when they are read, inside the filter.
    mark, keep = trust_as_template("{{ mark | default('first') }}"), trust_as_template("{{ keep | default('4') }}")
    entry = role({**LIVE, "environment": {"MARK": mark}, "keep_generations": keep}).evaluate("__django_app_entry")
    assert (entry["environment"], entry["keep_generations"]) == ({"MARK": "first"}, 4)


def test_an_app_without_channels_has_no_redis() -> None:
    assert "CHANNEL_LAYER_URL" not in environment(asgi="")
    assert role(APP).evaluate("__django_app_secrets") == {"SECRET_KEY": ""}
    assert role(LIVE).evaluate("__django_app_secrets") == {"CHANNEL_LAYER_PASSWORD": "", "SECRET_KEY": ""}


def test_the_users_name_may_be_another_than_the_apps() -> None:
    # Peer authentication: the user of the system is the database's role; the database and Redis are named after the app.
    found = environment(user="keeper")
    assert found["DATABASE_URL"] == "postgresql://keeper@%2Fvar%2Frun%2Fpostgresql/shop"
    assert found["CHANNEL_LAYER_URL"] == "unix://shop@/run/redis-shop/redis.sock"


def test_a_database_elsewhere_is_the_apps_own_word() -> None:
    assert environment(environment={"DATABASE_URL": "postgresql://db/shop"})["DATABASE_URL"] == "postgresql://db/shop"
    assert "DATABASE_URL" not in environment(secrets={"SECRET_KEY": "", "DATABASE_URL": "postgresql://u:p@db/shop"})
    assert "DATABASE_URL" not in environment(database=False)


def test_other_hosts_are_reached_by_tls_and_verified() -> None:
    app = role(
        {**LIVE, "channel_layer_port": 20001},
        django_app_database_address="10.0.0.21",
        django_app_redis_address="fd00::31",
    )
    authority = "/etc/quintet-authority/authority.pem"
    layer = app.evaluate("__django_app_environment")["CHANNEL_LAYER_URL"]
    assert layer.startswith("rediss://")
    assert layer.endswith(f"@[fd00::31]:20001?ssl_ca_certs={authority}")
    database = app.evaluate("__django_app_composed")["DATABASE_URL"]["text"]
    assert f"@10.0.0.21:5432/{LIVE['name']}?sslmode=verify-full&sslrootcert={authority}&" in database


def test_a_database_with_a_password_is_found_by_a_secret() -> None:
    shop = role({**LIVE, "user": "keeper", "database_login": "password"})
    assert "DATABASE_URL" not in shop.evaluate("__django_app_environment")
    assert shop.evaluate("__django_app_secrets")["DATABASE_PASSWORD"] == ""
    assert shop.evaluate("__django_app_composed") == {
        "DATABASE_URL": {
            "secret": "DATABASE_PASSWORD",
            "text": "postgresql://keeper_{login}:{value}@%2Fvar%2Frun%2Fpostgresql/shop",
        }
    }
    assert shop.evaluate("__django_app_has_own_database") is True
    peer = role(LIVE)
    assert "DATABASE_PASSWORD" not in peer.evaluate("__django_app_secrets")
    assert peer.evaluate("__django_app_composed") == {}


@pytest.mark.parametrize(("address", "host"), [("10.0.0.5", "10.0.0.5"), ("fd00::5", "[fd00::5]")])
def test_a_database_on_another_host_is_the_same_for_all_and_migrated_by_its_owner(address: str, host: str) -> None:
    shop = role({**LIVE, "user": "web"}, django_app_database_address=address)
    # Or each host would migrate it.
    assert shop.evaluate("__django_app_has_own_database") is False
    assert shop.evaluate("__django_app_composed.DATABASE_URL.text").startswith(
        f"postgresql://web_{{login}}:{{value}}@{host}:5432/shop?sslmode=verify-full&sslrootcert="
    )
    for noticed in ("connect_timeout=5", "tcp_user_timeout=10000", "keepalives_idle=5"):
        assert noticed in shop.evaluate("__django_app_composed.DATABASE_URL.text")
    owner = shop.evaluate("__django_app_way.database_owner")
    assert owner["url"].startswith(f"postgresql://shop%3Aowner@{host}:5432/shop?sslmode=verify-full")
    assert owner["key"] == "/etc/quintet-authority/private/clients/shop/key.pem"
    # No process of the running app has it, nor can one get it.
    assert owner["group"] == "web-build"


def test_the_running_app_goes_through_a_pool_and_knows_the_way_past_it() -> None:
    shop = role(LIVE, django_app_database_address="10.0.0.5", django_app_database_pool_port=6432)
    composed = shop.evaluate("__django_app_composed")
    assert composed.keys() == {"DATABASE_URL", "DATABASE_DIRECT_URL"}
    through, past = (composed[name]["text"] for name in ("DATABASE_URL", "DATABASE_DIRECT_URL"))
    assert through.startswith("postgresql://shop_{login}:{value}@10.0.0.5:6432/shop?sslmode=verify-full")
    assert past == through.replace(":6432/", ":5432/")
    # Migrations hold locks.
    assert ":5432/" in shop.evaluate("__django_app_way.database_owner.url")


def test_on_one_host_nobody_else_migrates() -> None:
    assert "database_owner" not in role(LIVE).evaluate("__django_app_way")
    own = {**LIVE, "environment": {"DATABASE_URL": "postgresql://elsewhere/shop"}}
    assert "database_owner" not in role(own, django_app_database_address="10.0.0.5").evaluate("__django_app_way")
    assert role(own).evaluate("__django_app_has_own_database") is False


def test_rights_in_a_database_on_another_host_are_site_ymls_business() -> None:
    def prepared(address: str, **change: Any) -> Any:
        return role({**LIVE, **change}, django_app_database_address=address).evaluate("__django_app_prepared")

    for change in ({"database_rights": "schema"}, {"database_timeouts": {"statement_seconds": 5}}):
        assert prepared("10.0.0.5", **change) != prepared("10.0.0.5")
        assert prepared("", **change) == prepared("")


def test_an_old_password_outlives_the_way_back_to_peer_but_not_the_apps_own_secret() -> None:
    for change, alternating in (
        ({}, ["DATABASE_PASSWORD"]),
        ({"secrets": {"DATABASE_PASSWORD": "of another one"}}, []),
        ({"database": False}, []),
        ({"database_login": "password"}, ["DATABASE_PASSWORD"]),
        ({"database_login": "password", "secrets": {"DATABASE_PASSWORD": "given by the vault"}}, ["DATABASE_PASSWORD"]),
    ):
        assert role({**LIVE, **change}).evaluate("__django_app_alternating") == alternating


def test_without_media_there_is_no_media_root_and_nobody_else_reads_new_files() -> None:
    assert "MEDIA_ROOT" not in environment(shared=[], media_url="")
    assert role({**LIVE, "media_url": ""}).evaluate("__django_app_sandbox") == {}
    assert role(LIVE).evaluate("__django_app_sandbox") == {"UMask": "0022"}
    assert role({**LIVE, "sandbox": {"UMask": "0027"}}).evaluate("__django_app_sandbox") == {"UMask": "0027"}


def test_secrets_reach_the_units_as_files_or_in_the_environment() -> None:
    credentials = {
        name: f"/etc/quintet/shop/revisions/3/credentials/{name}" for name in ("CHANNEL_LAYER_PASSWORD", "SECRET_KEY")
    }
    assert role(LIVE).evaluate("__django_app_credentials") == credentials
    assert role({**LIVE, "secrets_as": "environment"}).evaluate("__django_app_credentials") == {}


def test_an_old_value_is_one_more_secret_unless_the_app_names_it_itself() -> None:
    assert role(LIVE).evaluate("__django_app_fallbacks") == ["SECRET_KEY"]
    own = {"SECRET_KEY": "", "SECRET_KEY_FALLBACKS": "mine"}
    assert role({**LIVE, "secrets": own}).evaluate("__django_app_fallbacks") == []
    assert role({**LIVE, "environment": {"SECRET_KEY_FALLBACKS": ""}}).evaluate("__django_app_fallbacks") == []
    assert role({**LIVE, "secrets": {"KEY": ""}}).evaluate("__django_app_fallbacks") == []
    more = {**LIVE, "secrets": {"A": "", "B": ""}, "secret_fallbacks": {"names": ["A", "B", "C"]}}
    assert role(more).evaluate("__django_app_fallbacks") == ["A", "B"]
    assert role(LIVE).evaluate("__django_app_overlaps") == ["CHANNEL_LAYER_PASSWORD"]
    assert role(APP).evaluate("__django_app_overlaps") == []
    with_old = role(LIVE, __django_app_secret_names=["SECRET_KEY", "SECRET_KEY_FALLBACKS"])
    assert list(with_old.evaluate("__django_app_credentials")) == ["SECRET_KEY", "SECRET_KEY_FALLBACKS"]


def test_manage_runs_with_the_environment_the_credentials_and_the_sandbox_of_the_servers() -> None:
    properties = role(LIVE).evaluate("__django_app_named.properties")
    for wanted in (
        "EnvironmentFile=/etc/quintet/shop/revisions/3/environment",
        "LoadCredential=SECRET_KEY:/etc/quintet/shop/revisions/3/credentials/SECRET_KEY",
        "Environment=QUINTET_GENERATION=1f0c2a9e-77aa01bc",
        "ProtectSystem=strict",
        "ReadWritePaths=/srv/shop/shared/media",
    ):
        assert wanted in properties


def test_a_build_runs_as_its_own_user_with_placeholders() -> None:
    command = role(LIVE).evaluate("__django_app_build_command")
    assert "--property=EnvironmentFile=/etc/quintet/shop/revisions/3/build.environment" in command
    assert "--property=User=shop-build" in command
    assert role(LIVE).evaluate("__django_app_build_secrets") == []


def test_a_build_that_asks_for_the_secrets_gets_them_as_the_app_does() -> None:
    revision = "/etc/quintet/shop/revisions/3"
    names = ["CHANNEL_LAYER_PASSWORD", "SECRET_KEY"]
    asking = {**LIVE, "build_with_secrets": True}
    assert role(asking).evaluate("__django_app_build_secrets") == [
        f"--property=EnvironmentFile={revision}/environment",
        f"--property=UnsetEnvironment={' '.join(names)}",
        *[f"--property=LoadCredential={name}:{revision}/credentials/{name}" for name in names],
    ]
    assert role({**asking, "secrets_as": "environment"}).evaluate("__django_app_build_secrets") == [
        f"--property=EnvironmentFile={revision}/environment"
    ]


def test_a_build_writes_to_its_generation_its_environment_and_its_cache_alone() -> None:
    (writable,) = [word for word in role(LIVE).evaluate("__django_app_build_command") if "ReadWritePaths" in word]
    assert writable.split("=", 2)[2].split() == [
        "/srv/shop/generations/1f0c2a9e-77aa01bc",
        "/srv/shop/venvs/0123456789abcdef",
        "/var/cache/quintet/shop",
    ]


def test_the_boot_starts_behind_what_the_app_needs() -> None:
    unit = role(LIVE).render("quintet-app.service.j2")
    assert "ExecStart=/usr/local/sbin/quintet boot shop" in unit
    assert "After=network.target postgresql.service redis-shop.service\n" in unit
    assert "After=network.target\n" in role({**APP, "database": False}).render("quintet-app.service.j2")


def test_the_directory_of_the_sockets_is_closed_to_all_but_the_web_server() -> None:
    lines = role(LIVE, django_app_socket_group="www-data").render("tmpfiles.conf.j2").splitlines()
    assert "d /run/quintet/shop/1f0c2a9e-77aa01bc 0710 root www-data" in lines


# ---- files on several hosts -----------------------------------------------------------------------------------------

ONE_HOST = {
    **LIVE,
    "shared": ["media", "cache"],
    "shared_files": {"kind": "one_host", "host": "app1", "host_only": ["cache"]},
}
MOUNTED: dict[str, Any] = {**LIVE, "shared_files": {"kind": "mount", "source": "10.0.0.41:/srv/shop"}}


def on_host(name: str, app: dict[str, Any], hosts: tuple[str, ...] = ("app1", "app2"), **more: Any) -> Role:
    return role(app, inventory_hostname=name, django_app_hosts=list(hosts), **more)


def test_another_host_than_that_of_the_files_may_not_write_there() -> None:
    keeper, other = on_host("app1", ONE_HOST), on_host("app2", ONE_HOST)
    assert keeper.evaluate("__django_app_writable_paths") == ["/srv/shop/shared/media", "/srv/shop/shared/cache"]
    assert other.evaluate("__django_app_writable_paths") == ["/srv/shop/shared/cache"]
    # Also for an app that was given the whole disk.
    assert "ReadOnlyPaths" not in keeper.evaluate("__django_app_sandbox")
    assert other.evaluate("__django_app_sandbox") == {"UMask": "0022", "ReadOnlyPaths": "/srv/shop/shared"}
    for name in ("properties", "units"):
        assert "ReadWritePaths=/srv/shop/shared/media" not in str(other.evaluate(f"__django_app_named.{name}"))
    assert "ReadOnlyPaths=/srv/shop/shared" in other.evaluate("__django_app_named.properties")


@pytest.mark.parametrize("hosts", [(), ("app1",)])
def test_on_one_host_what_is_said_of_several_changes_no_unit(hosts: tuple[str, ...]) -> None:
    said, plain = on_host("app1", ONE_HOST, hosts), on_host("app1", {**ONE_HOST, "shared_files": {}}, hosts)
    for expression in ("__django_app_named", "__django_app_sandbox", "__django_app_writable_paths"):
        assert said.evaluate(expression) == plain.evaluate(expression)


def test_nothing_of_an_app_starts_where_its_files_are_not_mounted() -> None:
    wanted = ["RequiresMountsFor=/srv/shop/shared", "AssertPathIsMountPoint=/srv/shop/shared"]
    shop = on_host("app2", {**BUSY, "shared_files": MOUNTED["shared_files"]})
    units = shop.evaluate("__django_app_named.units")
    assert units
    for name, text in units.items():
        if name.endswith(".service"):
            assert [line for line in section(text, "Unit") if line in wanted] == wanted, name
    # systemd-run succeeds where a condition of the unit keeps the command from running.
    (check,) = [line for line in shop.evaluate("__django_app_named.properties") if "mountpoint" in line]
    assert check == (
        'ExecStartPre=/bin/sh -c "mountpoint -q /srv/shop/shared || { echo nothing is mounted at /srv/shop/shared >&2; exit 1; }"'
    )
    assert "RequiresMountsFor=/srv/shop /srv/shop/shared\n" in shop.render("quintet-app.service.j2")
    assert "shared" not in role(LIVE).render("quintet-app.service.j2")
    # An app without such directories has nothing there to be mounted.
    assert on_host("app2", {**MOUNTED, "shared": []}).evaluate("__django_app_mounts") == []


@pytest.mark.parametrize("server", ["gunicorn", "daphne"])
def test_the_servers_are_told_what_must_be_mounted(server: str) -> None:
    text = Role(
        server,
        **{
            f"{server}_app_name": "shop",
            f"{server}_application": "a:b",
            f"{server}_generation": "1f0c2a9e-77aa01bc",
            f"{server}_required_mounts": ["/srv/shop/shared"],
        },
    ).render(f"{server}.service.j2")
    assert "AssertPathIsMountPoint=/srv/shop/shared" in section(text, "Unit")
    assert "RequiresMountsFor=/srv/shop/shared" in section(text, "Unit")
    tasks = str(load(ROOT / "roles/django_app/tasks/servers.yml"))
    assert f"'{server}_required_mounts': '{{{{ __django_app_mounts }}}}'" in tasks


def test_a_mount_is_a_unit_with_safe_options_unless_told_otherwise(tmp_path: Path) -> None:
    mount = section(on_host("app1", MOUNTED).render("shared.mount.j2"), "Mount")
    for line in (
        "What=10.0.0.41:/srv/shop",
        "Where=/srv/shop/shared",
        "Type=nfs4",
        "Options=_netdev,nosuid,nodev,noexec",
    ):
        assert line in mount
    given = {**MOUNTED["shared_files"], "type": "cifs", "options": ["vers=3.1.1", "uid=shop"]}
    mount = section(on_host("app1", {**LIVE, "shared_files": given}).render("shared.mount.j2"), "Mount")
    assert "Options=vers=3.1.1,uid=shop" in mount
    if shutil.which("systemd-analyze"):
        unit = tmp_path / "srv-shop-shared.mount"
        unit.write_text(on_host("app1", MOUNTED).render("shared.mount.j2"))
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
        )
        assert "shared.mount" not in done.stderr


@pytest.mark.parametrize(
    ("shared_files", "packages"),
    [
        (MOUNTED["shared_files"], ["nfs-common"]),
        ({"kind": "mount", "source": "//nas/shop", "type": "cifs"}, ["cifs-utils"]),
        ({"kind": "mount", "source": "/x", "type": "none"}, []),
        ({"kind": "mount"}, []),
        ({}, []),
    ],
)
def test_what_mounts_is_installed_where_the_roles_mount(shared_files: dict[str, Any], packages: list[str]) -> None:
    assert role({**LIVE, "shared_files": shared_files}).evaluate("__django_app_mount_packages") == packages


def test_the_top_of_what_is_mounted_is_left_to_who_runs_the_server() -> None:
    tasks: Any = load(ROOT / "roles/django_app/tasks/prepare.yml")
    (write,) = [task for task in tasks if "__django_app_probes" in task.get("vars", {})]
    for app, is_made in ((LIVE, True), (ONE_HOST, True), (MOUNTED, False)):
        shop = on_host("app1", app, **write["vars"], wanted=write["quintet.django.write_files"]["directories"])
        paths = [one["path"] for one in shop.evaluate("wanted")]
        assert ("/srv/shop/shared" in paths) is is_made
        assert "/srv/shop/shared/media" in paths


def prove(*directories: Path) -> str:
    script = role(LIVE).evaluate("__django_app_prove_files")
    command = ["sh", "-euc", script, "sh", *map(str, directories)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_hosts_with_the_same_directory_read_one_mark_and_others_another(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for directory in (one, other):
        directory.mkdir()
    assert len(prove(one)) > 30
    assert prove(one, other) == prove(one)
    assert prove(other) != prove(one)
    assert [path.name for path in one.iterdir()] == [".quintet-shared"]


def test_a_directory_that_cannot_be_written_to_is_no_proof(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        prove(tmp_path, tmp_path / "missing")


def refusals(name: str, role_of: Role) -> list[str]:
    """Return what the assertions of a file of tasks say on a host; in their conditions `when` counts."""
    found = []
    tasks: Any = load(ROOT / f"roles/django_app/tasks/{name}.yml")
    for task in tasks:
        asserted = task.get("ansible.builtin.assert")
        if not asserted:
            continue
        role_of.variables |= task.get("vars", {})
        holds = [role_of.evaluate(condition) for condition in (task.get("when", "true"), asserted["that"])]
        # Ansible takes nothing else for a condition.
        assert {type(one) for one in holds} == {bool}
        if holds == [True, False]:
            role_of.variables["message"] = asserted["fail_msg"]
            found.append(" ".join(role_of.evaluate("message").split()))
    return found


def looked(app: dict[str, Any], prepare: bool = True, **lines: list[str]) -> list[str]:
    """Return the refusals on app2, where hosts have seen these lines."""
    looks: dict[str, Any] = {host: {"__django_app_files_look": {"stdout_lines": seen}} for host, seen in lines.items()}
    return refusals(
        "shared_files",
        on_host(
            "app2",
            app,
            hostvars=looks,
            ansible_play_batch=list(looks),
            django_app_prepare=prepare,
            **looks["app2"],
        ),
    )


BY_OTHERS = {**LIVE, "shared_files": {"kind": "mount"}}
NAS = "10.0.0.41:/srv/shop nfs4"


@pytest.mark.parametrize(
    ("app", "prepare", "lines", "said"),
    [
        (BY_OTHERS, True, {"app1": [NAS], "app2": [NAS]}, ""),
        (BY_OTHERS, True, {"app1": [NAS], "app2": ["- -"]}, "nothing is mounted at /srv/shop/shared on app2"),
        (MOUNTED, True, {"app1": ["- -"], "app2": ["- -"]}, ""),
        (MOUNTED, False, {"app1": [NAS], "app2": ["- -"]}, "Run site.yml, which mounts it."),
        (
            MOUNTED,
            True,
            {"app1": ["- -"], "app2": ["- -", "./media/a"]},
            "/srv/shop/shared/media/a is on the own disk of app2",
        ),
        (BY_OTHERS, True, {"app1": [NAS], "app2": [NAS, "./media/a"]}, "where a mount hides it"),
        (
            BY_OTHERS,
            True,
            {"app1": ["nas:/shop nfs4"], "app2": [NAS]},
            "app1 has nas:/shop nfs4, app2 has 10.0.0.41:/srv/shop nfs4",
        ),
        (
            MOUNTED,
            True,
            {"app1": ["nas:/old nfs4"], "app2": ["nas:/old nfs4"]},
            "nas:/old is mounted at /srv/shop/shared on app2",
        ),
        (ONE_HOST, True, {"app2": ["- -"]}, ""),
        (
            ONE_HOST,
            True,
            {"app2": ["- -", "media/a"]},
            "/srv/shop/shared/media/a is on app2, and shared_files says that app1",
        ),
    ],
)
def test_what_would_make_hosts_differ_or_hide_files_is_refused(
    app: dict[str, Any], prepare: bool, lines: dict[str, list[str]], said: str
) -> None:
    told = looked(app, prepare, **lines)
    if not said:
        assert told == []
    else:
        assert len(told) == 1
        assert said in told[0]


def test_a_user_with_other_numbers_on_another_host_is_refused() -> None:
    numbers = {
        name: {"__django_app_users": {"results": [{"uid": uid}]}} for name, uid in (("app1", 998), ("app2", 997))
    }
    common: dict[str, Any] = {"hostvars": numbers, "ansible_play_batch": ["app1", "app2"], "ansible_check_mode": False}
    (told,) = refusals("mount", on_host("app2", MOUNTED, **common))
    assert "app1 has 998, app2 has 997" in told
    assert "usermod --uid 998 shop" in told
    cifs = {**LIVE, "shared_files": {"kind": "mount", "source": "//nas/x", "type": "cifs"}}
    assert refusals("mount", on_host("app2", cifs, **common)) == []


def test_hosts_that_do_not_see_each_others_files_are_refused() -> None:
    for second, count in (("a", 0), ("b", 1)):
        marks = {
            "app1": {"__django_app_files_mark": {"stdout": "a"}},
            "app2": {"__django_app_files_mark": {"stdout": second}},
        }
        assert (
            len(refusals("prove_files", on_host("app2", MOUNTED, hostvars=marks, ansible_play_batch=[*marks]))) == count
        )


# ---- workers, timers, hooks ----------------------------------------------------------------------------------------

BUSY = {
    **LIVE,
    "workers": [
        {"name": "mail", "command": 'celery --app config worker -n "$HOSTNAME 100%"', "processes": 2},
        {"name": "beat", "command": "celery beat", "stop_signal": "SIGINT", "stop_seconds": 5, "memory_max": "256M"},
    ],
    "timers": [{"name": "nightly", "command": "python manage.py clearsessions && true", "calendar": "*-*-* 03:30:00"}],
}


def section(unit: str, name: str) -> list[str]:
    """Return the lines of one section of a unit, comments left out."""
    body = unit.partition(f"[{name}]\n")[2].partition("\n[")[0]
    return [line for line in body.splitlines() if line and not line.startswith("#")]


def test_each_process_of_a_worker_and_each_timer_is_a_unit_of_the_generation() -> None:
    named = role(BUSY).evaluate("__django_app_named")
    identifier = PLAN["generation"]
    workers = [f"worker-shop-{name}@{identifier}.service" for name in ("mail-1", "mail-2", "beat-1")]
    assert named["workers"] == workers
    assert named["timers"] == [f"timer-shop-nightly@{identifier}.timer"]
    assert sorted(named["units"]) == sorted([*workers, *named["timers"], f"timer-shop-nightly@{identifier}.service"])
    for text in [*named["units"].values(), *named["properties"]]:
        assert "00000000" not in text
        assert "[Install]" not in text
        assert "current" not in text


def test_a_worker_is_its_own_process_with_the_environment_of_the_servers() -> None:
    units = role(BUSY).evaluate("__django_app_named.units")
    mail = section(units["worker-shop-mail-1@1f0c2a9e-77aa01bc.service"], "Service")
    # What systemd reads back is: exec celery --app config worker -n "$HOSTNAME 100%"
    assert r'ExecStart=/bin/sh -euc "exec celery --app config worker -n \"$$HOSTNAME 100%%\""' in mail
    for line in (
        "User=shop",
        "WorkingDirectory=/srv/shop/generations/1f0c2a9e-77aa01bc/src",
        "Environment=PATH=/srv/shop/generations/1f0c2a9e-77aa01bc/venv/bin:/usr/local/bin:/usr/bin:/bin",
        "Restart=always",
        "RestartSec=1",
        "KillSignal=SIGTERM",
        "TimeoutStopSec=60",
        *role(BUSY).evaluate("__django_app_properties | map('replace', __django_app_placeholder, '1f0c2a9e-77aa01bc')"),
    ):
        assert line in mail
    assert {"MemoryMax=25%", "TasksMax=512", "OOMScoreAdjust=400", "OOMPolicy=continue"} <= set(mail)
    beat = section(units["worker-shop-beat-1@1f0c2a9e-77aa01bc.service"], "Service")
    assert {"KillSignal=SIGINT", "TimeoutStopSec=5", "MemoryMax=256M"} <= set(beat)


def test_a_timer_runs_its_command_once_within_its_time() -> None:
    units = role(BUSY).evaluate("__django_app_named.units")
    service = section(units["timer-shop-nightly@1f0c2a9e-77aa01bc.service"], "Service")
    assert 'ExecStart=/bin/sh -euc "python manage.py clearsessions && true"' in service
    assert {"Type=oneshot", "TimeoutStartSec=3600", "TimeoutStopSec=60", "ProtectSystem=strict"} <= set(service)
    assert not [line for line in service if line.startswith("Restart=")]
    timer = section(units["timer-shop-nightly@1f0c2a9e-77aa01bc.timer"], "Timer")
    assert timer == ["OnCalendar=*-*-* 03:30:00", "AccuracySec=1s"]


# ---- what one of several hosts does --------------------------------------------------------------------------------

SINGLE = {
    **BUSY,
    "workers": [BUSY["workers"][0], {**BUSY["workers"][1], "runs_on": "one_host"}],
    "timers": [*BUSY["timers"], {"name": "local", "command": "true", "calendar": "hourly", "runs_on": "every_host"}],
}
ONCE = f"once-shop@{PLAN['generation']}.service"


@pytest.mark.parametrize("hosts", [[], ["app1"]])
def test_one_host_has_the_same_units_wherever_they_are_to_run(hosts: list[str]) -> None:
    everywhere = {
        **SINGLE,
        "workers": [{**one, "runs_on": "every_host"} for one in SINGLE["workers"]],
        "timers": [{**one, "runs_on": "every_host"} for one in SINGLE["timers"]],
    }
    named = role(SINGLE, django_app_hosts=hosts).evaluate("__django_app_named")
    assert named == role(everywhere).evaluate("__django_app_named")
    assert (named["once"], ONCE in named["units"]) == ([], False)
    assert "once" not in "".join(named["units"].values())


def test_how_many_hosts_there_are_changes_no_unit() -> None:
    two, three = (role(SINGLE, django_app_hosts=[f"app{number}" for number in range(count)]) for count in (2, 3))
    assert two.evaluate("__django_app_named") == three.evaluate("__django_app_named")


def test_a_worker_of_one_host_waits_for_its_lock() -> None:
    units = role(SINGLE, django_app_hosts=["app1", "app2"]).evaluate("__django_app_named.units")
    beat = section(units[f"worker-shop-beat-1@{PLAN['generation']}.service"].replace("\\\n  ", ""), "Service")
    generation = f"/srv/shop/generations/{PLAN['generation']}"
    assert (
        f'ExecStart=/usr/bin/env python {generation}/units/once.py run --app shop --work "worker beat" '
        '--stop-signal SIGINT --stop-seconds 5 -- /bin/sh -euc "exec celery beat"'
    ) in beat
    assert f"Environment=PATH={generation}/venv/bin:/usr/local/bin:/usr/bin:/bin" in beat, "the app's own Python"
    # Its own signal and time, so that systemd does not end it sooner or later than its command.
    assert {"NotifyAccess=main", "KillSignal=SIGINT", "TimeoutStopSec=5", "KillMode=mixed", "Restart=always"} <= set(
        beat
    )
    assert "once.py" not in units[f"worker-shop-mail-1@{PLAN['generation']}.service"]


def test_timers_of_one_host_run_where_their_unit_has_the_lock() -> None:
    named = role(SINGLE, django_app_hosts=["app1", "app2"]).evaluate("__django_app_named")
    identifier, units = PLAN["generation"], named["units"]
    # First of the workers, since jobs are bound to it; of the units that take turns, with the worker.
    assert named["workers"][0] == ONCE
    assert named["once"] == [ONCE, f"worker-shop-beat-1@{identifier}.service"]
    once = section(units[ONCE], "Service")
    assert f"RuntimeDirectory=quintet/shop/once-{identifier}" in once
    assert any(line.endswith("units/once.py hold --app shop --work timers") for line in once)
    assert {"NotifyAccess=main", "Restart=always", "User=shop", "ProtectSystem=strict"} <= set(once)
    job = units[f"timer-shop-nightly@{identifier}.service"]
    assert {f"BindsTo={ONCE}", f"After={ONCE}"} <= set(section(job, "Unit"))
    assert f"ExecCondition=/usr/bin/test -e /run/quintet/shop/once-{identifier}/holds" in section(job, "Service")
    assert "once" not in units[f"timer-shop-local@{identifier}.service"]
    # All hosts have the timer.
    assert named["timers"] == [f"timer-shop-{name}@{identifier}.timer" for name in ("nightly", "local")]


def test_without_a_timer_of_one_host_nothing_holds_their_lock() -> None:
    named = role({**SINGLE, "timers": SINGLE["timers"][1:]}, django_app_hosts=["app1", "app2"]).evaluate(
        "__django_app_named"
    )
    assert ONCE not in named["units"]
    assert named["once"] == [f"worker-shop-beat-1@{PLAN['generation']}.service"]


def test_units_of_workers_and_timers_change_the_hosts_half_of_the_id() -> None:
    facts = {"distribution": "Debian", "distribution_major_version": "13", "architecture": "x86_64"}
    facts_of_all = {"ansible_facts": {**facts, "python": {"version": {"major": 3, "minor": 13}}}}
    bare = role(LIVE, **facts_of_all).evaluate("__django_app_host")
    assert role(BUSY, **facts_of_all).evaluate("__django_app_host") != bare


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("hosts", [[], ["app1", "app2"]])
def test_systemd_reads_the_units_without_complaint(tmp_path: Path, hosts: list[str]) -> None:
    for name, text in role(SINGLE, django_app_hosts=hosts).evaluate("__django_app_named.units").items():
        (tmp_path / name).write_text(text)
    paths = sorted(str(path) for path in tmp_path.iterdir())
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line or "@1f0c2a9e" in line] == []


def test_each_unit_of_the_users_own_is_checked_before_it_is_written() -> None:
    checks = role(BUSY).evaluate("__django_app_unit_checks")
    units = "/srv/shop/generations/1f0c2a9e-77aa01bc/units/"
    assert {check["path"].removeprefix(units) for check in checks} == set(
        role(BUSY).evaluate("__django_app_named.units")
    )
    assert {"path": f"{units}timer-shop-nightly@1f0c2a9e-77aa01bc.timer", "command": TRIED} in checks


TRIED = ["systemd-analyze", "calendar", "*-*-* 03:30:00"]


def test_a_build_command_has_its_own_time_limit_and_its_dollar_signs() -> None:
    hook = {"name": "assets", "command": 'echo "$HOME"\nnpm ci', "timeout_seconds": 7}
    command = role(LIVE, __django_app_hook=hook).evaluate("__django_app_hook_command")
    # The last one counts, and systemd-run makes one dollar sign of two.
    assert [word for word in command if "RuntimeMaxSec" in word][-1] == "--property=RuntimeMaxSec=7"
    assert command[-3:] == ["/bin/sh", "-euc", 'echo "$$HOME"\nnpm ci']
    assert "--property=User=shop-build" in command
    assert [word for word in command if word.startswith("--setenv=PATH=/srv/shop/generations/")]


def test_the_host_command_gets_the_hooks_that_it_runs() -> None:
    hooks = {"build": [{"command": "npm ci"}], "after_switch": [{"command": "true"}]}
    found = role({**LIVE, "hooks": hooks}).evaluate("__django_app_host_hooks")
    assert sorted(found) == ["after_migrate", "after_switch", "before_migrate", "before_switch", "on_failure"]
    assert found["after_switch"] == [{"command": "true", "name": "true", "timeout_seconds": 600}]


def test_the_units_directory_gets_what_runs_with_the_apps_own_python() -> None:
    files = {file["name"]: file["content"] for file in role(BUSY).evaluate("__django_app_unit_files")}
    programs = {path.name for path in (ROOT / "roles/django_app/files/generation").glob("*.py")}
    assert {"build_app.py", "migrate_app.py", "once.py"} <= programs
    assert programs | {"tmpfiles.conf"} <= set(files)
    assert files["build_app.py"] == (ROOT / "roles/django_app/files/generation/build_app.py").read_text()


# ---- the way of a change -------------------------------------------------------------------------------------------


def test_limits_in_mebibytes_reach_the_host_in_bytes() -> None:
    way = role({**LIVE, "dump": {"max_mb": 2}, "static_pool": {"days": 1, "max_mb": 3}}).evaluate("__django_app_way")
    assert way["dump"] == {"enabled": True, "keep": 3, "max_bytes": 2 * 1024 * 1024}
    assert way["static_pool"] == {"days": 1, "max_bytes": 3 * 1024 * 1024}
    assert (way["migration_lock_seconds"], way["worker_stay_seconds"], way["keep_generations"]) == (10, 5, 3)


@pytest.mark.parametrize(
    ("change", "has_client"),
    [
        ({}, True),
        ({"dump": {"enabled": False}}, False),
        ({"database": False}, False),
        ({"database": False, "environment": {"DATABASE_URL": "postgresql://db/shop"}}, True),
        ({"database": False, "environment": {"DATABASE_URL": "sqlite:////x"}}, False),
    ],
)
def test_a_dump_needs_the_databases_client(change: dict[str, Any], has_client: bool) -> None:
    assert ("postgresql-client" in role({**LIVE, **change}).evaluate("__django_app_packages")) is has_client


def test_a_quick_deploy_notices_what_it_would_not_see_to() -> None:
    prepared = role(LIVE).evaluate("__django_app_prepared")
    assert role({**LIVE, "environment": {"A": "1"}, "wsgi": "x:y"}).evaluate("__django_app_prepared") == prepared
    of_last_year = {"nginx": {"tls_certificate": "2026.pem", "tls_key": "2026.key"}}
    assert role({**LIVE, **of_last_year}).evaluate("__django_app_prepared") == prepared
    assert role({**LIVE, "database_login": "password"}).evaluate("__django_app_prepared") != prepared
    for change in (
        {"tls": "self_signed"},
        {"nginx": {"tls_hsts": 0}},
        {"packages": ["gettext"]},
        {"user": "keeper"},
        {"database": False},
        {"channel_layer": False},
        {"shared_files": {"kind": "one_host", "host": "app1", "upload_paths": ["/upload/"]}},
    ):
        assert role({**LIVE, **change}).evaluate("__django_app_prepared") != prepared


def lock(**controller: Any) -> dict[str, Any]:
    apps = [{"app": "shop", "lock": {"holder": "ann@laptop", "controller": controller or None}}]
    return {"stdout": json.dumps({"apps": apps})}


def test_a_lock_is_taken_over_when_its_controller_is_gone_or_when_told_so() -> None:
    own = identity()
    assert own is not None
    for status, told, expected in (
        ({"stdout": "skipped, since /usr/local/sbin/quintet does not exist"}, False, []),
        ({"stdout": json.dumps({"apps": [{"app": "shop", "lock": None}]})}, False, []),
        (lock(), False, []),
        (lock(**own), False, []),
        (lock(**{**own, "started": 1}), False, ["--take-over"]),
        (lock(**own), True, ["--take-over"]),
    ):
        found = role(LIVE, __django_app_status=status, django_app_break_lock=told)
        assert found.evaluate("__django_app_take_over") == expected


def hosts(**outcomes: dict[str, str] | None) -> dict[str, Any]:
    """Return what a play knows of its hosts, whose last outcomes are given; None for a host that is gone."""
    known = {
        name: {"inventory_hostname": name, **({"__django_app_outcome": outcome} if outcome is not None else {})}
        for name, outcome in outcomes.items()
    }
    return {"hostvars": known, "__django_app_company": list(known), "__django_app_step": "migrate"}


def test_hosts_that_failed_or_are_gone_hold_up_the_others() -> None:
    good = {"app": "shop", "step": "migrate", "failure": ""}
    assert role(LIVE, **hosts(a=good, b=good)).evaluate("__django_app_stragglers") == []
    others = hosts(a=good, b={**good, "failure": "no"}, c=None, d={**good, "step": "build"}, e={**good, "app": "other"})
    assert role(LIVE, **others).evaluate("__django_app_stragglers") == ["b", "c", "d", "e"]


@pytest.mark.parametrize(
    ("hosts", "batch", "together"),
    [
        (["a", "b"], ["a", "b"], ["a", "b", "gone"]),
        # With serial those of other batches have their own time.
        (["a", "b", "c"], ["b"], ["b"]),
    ],
)
def test_the_hosts_of_a_play_or_of_a_batch_go_together(hosts: list[str], batch: list[str], together: list[str]) -> None:
    found = role(LIVE, ansible_play_hosts_all=[*hosts, "gone"], ansible_play_hosts=hosts, ansible_play_batch=batch)
    assert found.evaluate("__django_app_together") == together


def way_back(to: str, previous: dict[str, str]) -> Role:
    """Return host a, which serves ffffffff, among hosts with these previous generations."""
    ways = {
        host: {
            "__django_app_way_back": {
                "current": "ffffffff-0000000a",
                "previous": generation,
                "good": ["ffffffff-0000000a", "ffffffff-0000000b", "11111111-0000000a", "22222222-0000000a"],
            }
        }
        for host, generation in previous.items()
    }
    return role(LIVE, hostvars=ways, __django_app_company=list(previous), django_app_rollback_to=to, **ways["a"])


@pytest.mark.parametrize(
    ("to", "previous", "releases", "target"),
    [
        ("", {"a": "11111111-0000000a", "b": "11111111-0000000b"}, ["11111111"], "11111111-0000000a"),
        ("", {"a": "11111111-0000000a", "b": "22222222-0000000b"}, ["11111111", "22222222"], None),
        # Another secret: the same release with another generation.
        ("", {"a": "ffffffff-0000000b"}, ["ffffffff"], "ffffffff-0000000b"),
        ("", {"a": "33333333-0000000a"}, ["33333333"], ""),
        ("22222222", {"a": "11111111-0000000a", "b": "11111111-0000000b"}, ["22222222"], "22222222-0000000a"),
        # The generation of one host names the release of all.
        ("22222222-0000000b", {"a": "11111111-0000000a"}, ["22222222"], "22222222-0000000a"),
        ("22222222-0000000a", {"a": "11111111-0000000a"}, ["22222222"], "22222222-0000000a"),
        ("ffffffff", {"a": "11111111-0000000a"}, ["ffffffff"], "ffffffff-0000000a"),
        ("44444444", {"a": "11111111-0000000a"}, ["44444444"], ""),
    ],
)
def test_all_hosts_go_back_to_one_release(
    to: str, previous: dict[str, str], releases: list[str], target: str | None
) -> None:
    found = way_back(to, previous)
    assert found.evaluate("__django_app_releases") == releases
    if target is not None:
        assert found.evaluate("__django_app_target") == target


def test_a_failed_command_of_a_loop_is_named_with_its_words() -> None:
    hook = {"name": "assets", "timeout_seconds": 9}
    items = [
        {"failed": False, "rc": 0},
        {"failed": True, "rc": 2, "stdout": "no such file\n", "__django_app_hook": hook},
    ]
    found = role(LIVE, ansible_failed_result={"msg": "One or more items failed", "results": items})
    said = found.evaluate("__django_app_reason")
    assert said == "'assets' ended with code 2 (its time limit is 9 seconds): no such file"
    plain = role(LIVE, ansible_failed_result={"msg": "non-zero return code", "stderr": "quintet: refused\n"})
    assert plain.evaluate("__django_app_reason") == "quintet: refused"


@pytest.mark.parametrize(
    ("action", "step"),
    [
        ("ansible.builtin.command", "Unpack the source: "),
        ("ansible.builtin.assert", ""),
        ("quintet.django.check_apps", ""),
    ],
)
def test_a_failed_step_is_named_unless_it_explains_itself(action: str, step: str) -> None:
    failed = {"name": "quintet.django.django_app : generation | Unpack the source", "action": action}
    assert role(LIVE, ansible_failed_task=failed).evaluate("__django_app_failed_step") == step


# ---- build_app.py, in a process of its own as on a host ------------------------------------------------------------


@pytest.mark.parametrize("name", ["gunicorn", "daphne", "django_app"])
def test_what_an_admin_sets_as_ansible_managed_is_in_no_generation(name: str) -> None:
    for template in (ROOT / "roles" / name / "templates").iterdir():
        assert "ansible_managed" not in template.read_text(), template


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "settings.py").write_text(
        "import os\nSECRET_KEY = 'x'\nSTATIC_URL = '/static/'\nSTATIC_ROOT = os.environ['STATIC_ROOT']\n"
        "STATICFILES_DIRS = ['files']\nINSTALLED_APPS = ['django.contrib.staticfiles', 'django.contrib.contenttypes']\n"
    )
    (tmp_path / "wsgi.py").write_text("def application(environ, start_response): ...\nnothing = 1\n")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/big.css").write_text("a { color: red }\n" * 200)
    (tmp_path / "files/small.css").write_text("a { color: red }\n")
    return tmp_path


def build(app: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "STATIC_ROOT": str(app / "static"),
        "PATH": "/usr/bin:/bin",
        **environment,
    }
    script = ROOT / "roles/django_app/files/generation/build_app.py"
    return subprocess.run(
        [sys.executable, script, *arguments], cwd=app, env=given, capture_output=True, text=True, check=False
    )


def test_a_build_collects_compresses_and_lists_the_migrations(app: Path) -> None:
    done = build(app, "--wsgi", "wsgi:application", "--collect-static")
    assert done.returncode == 0, done.stderr
    assert "contenttypes" in json.loads(done.stdout.splitlines()[-1])["migrations"]
    assert {path.name for path in (app / "static").iterdir()} == {"big.css", "big.css.gz", "small.css"}
    assert (app / "__pycache__").is_dir()


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["--wsgi", "nowhere:application"], {}, "wsgi: 'nowhere:application' does not import."),
        (["--wsgi", "wsgi:missing"], {}, "wsgi: 'wsgi:missing' does not import."),
        (["--wsgi", "wsgi:nothing"], {}, "wsgi: 'wsgi:nothing' is no application"),
        (["--wsgi", "wsgi:application", "--asgi", "asgi:application"], {}, "asgi: 'asgi:application' does not import."),
        (
            ["--wsgi", "wsgi:application"],
            {"DJANGO_SETTINGS_MODULE": "absent"},
            "settings_module: 'absent' does not set up Django.",
        ),
    ],
)
def test_what_does_not_import_is_named(
    app: Path, arguments: list[str], environment: dict[str, str], words: str
) -> None:
    done = build(app, *arguments, **environment)
    assert done.returncode == 1
    assert words in done.stderr


def test_gunicorn_checks_its_configuration_with_the_app(app: Path) -> None:
    def check(text: str, application: str = "wsgi:application") -> subprocess.CompletedProcess[str]:
        (app / "conf.py").write_text(text)
        configuration = ["--check-config", "--config", str(app / "conf.py"), application]
        return build(app, "--wsgi", "wsgi:application", "--gunicorn", *configuration)

    done = check("workers = 2\nprint('a word of the configuration')\n")
    assert done.returncode == 0, done.stderr
    assert "a word of the configuration" in done.stderr
    assert json.loads(done.stdout) == {
        "migrations": {"contenttypes": ["0001_initial", "0002_remove_content_type_name"]}
    }
    for wrong in (check("workers = 'many'\n"), check("", "wsgi:missing")):
        assert wrong.returncode == 1
        assert wrong.stdout == ""
    assert "Invalid value for workers" in check("workers = 'many'\n").stderr


def test_static_files_that_go_elsewhere_are_refused(app: Path) -> None:
    settings = app / "settings.py"
    settings.write_text(settings.read_text().replace("os.environ['STATIC_ROOT']", "'/var/www/static'"))
    done = build(app, "--wsgi", "wsgi:application", "--collect-static")
    assert done.returncode == 1
    assert "STATIC_ROOT: the settings collect static files in '/var/www/static'" in done.stderr
