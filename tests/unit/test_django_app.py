"""The role django_app: what an app's dictionary becomes for its units, its builds and its neighbours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rendering import ROOT, Role

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
        gunicorn_rendered={"units": {}, "sockets": [], "services": [], "check": []},
        daphne_rendered={"units": {}, "sockets": [], "services": []},
        **more,
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


def test_static_files_that_go_elsewhere_are_refused(app: Path) -> None:
    settings = app / "settings.py"
    settings.write_text(settings.read_text().replace("os.environ['STATIC_ROOT']", "'/var/www/static'"))
    done = build(app, "--wsgi", "wsgi:application", "--collect-static")
    assert done.returncode == 1
    assert "STATIC_ROOT: the settings collect static files in '/var/www/static'" in done.stderr
