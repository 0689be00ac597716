import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import TestCase
from unittest.mock import patch

from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.test import SimpleTestCase

from config.environment import flag, items, secret
from config.settings import BASE_DIR, channel_layer, database


class EnvironmentTest(TestCase):
    def test_a_credential_is_stronger_than_the_environment(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "NAME").write_text("from file\n")
            with patch.dict(os.environ, {"CREDENTIALS_DIRECTORY": folder, "NAME": "variable", "OTHER": "other"}):
                self.assertEqual(secret("NAME"), "from file")
                self.assertEqual(secret("OTHER"), "other")
                self.assertEqual(secret("NONE"), "")

    def test_an_unreadable_credential_is_an_error(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "NAME").mkdir()
            with (
                patch.dict(os.environ, {"CREDENTIALS_DIRECTORY": folder, "NAME": "variable"}),
                self.assertRaisesRegex(ImproperlyConfigured, "NAME: its credential file"),
            ):
                secret("NAME")

    def test_flags_and_lists(self):
        with patch.dict(os.environ, {"ON": "1", "OFF": "0", "BAD": "yes"}):
            self.assertEqual((flag("ON"), flag("OFF"), flag("UNSET")), (True, False, False))
            with self.assertRaisesRegex(ImproperlyConfigured, "BAD is 'yes'"):
                flag("BAD")
        self.assertEqual(items(" a, b,,"), ["a", "b"])


class MigrationsTest(SimpleTestCase):
    databases = ("default",)

    def test_they_make_what_the_models_say(self):
        call_command("makemigrations", check=True, dry_run=True, verbosity=0)


class ServicesTest(TestCase):
    def test_postgresql_over_a_socket(self):
        settings = database("postgresql:///shop?host=/var/run/postgresql")
        self.assertEqual(settings["NAME"], "shop")
        self.assertEqual(settings["OPTIONS"]["host"], "/var/run/postgresql")
        self.assertEqual((settings["CONN_MAX_AGE"], settings["CONN_HEALTH_CHECKS"]), (600, True))

    def test_postgresql_with_a_password(self):
        settings = database("postgresql://shop_1:a%2Fb@%2Fvar%2Frun%2Fpostgresql/shop")
        self.assertEqual([settings[key] for key in ("USER", "PASSWORD", "NAME")], ["shop_1", "a/b", "shop"])
        self.assertEqual(settings["HOST"], "/var/run/postgresql")

    def test_postgresql_is_given_up_soon_unless_its_url_says_otherwise(self):
        url = "postgresql://shop_1:x@192.0.2.1:5432/shop?sslmode=verify-full"
        self.assertEqual(
            database(url)["OPTIONS"],
            {
                "sslmode": "verify-full",
                "connect_timeout": 5,
                "tcp_user_timeout": 5000,
                "keepalives_idle": 5,
                "keepalives_interval": 2,
            },
        )
        given = database(f"{url}&connect_timeout=2&tcp_user_timeout=3000")["OPTIONS"]
        self.assertEqual([int(given[name]) for name in ("connect_timeout", "tcp_user_timeout")], [2, 3000])

    def test_the_channel_layer(self):
        self.assertEqual(channel_layer("", "")["BACKEND"], "channels.layers.InMemoryChannelLayer")
        (host,) = channel_layer("unix://shop@/run/redis-shop/redis.sock", "secret")["CONFIG"]["hosts"]
        self.assertEqual(
            host,
            {
                "address": "unix://shop@/run/redis-shop/redis.sock",
                "password": "secret",
                "socket_timeout": 10,
                "socket_connect_timeout": 2,
                "max_connections": 5000,
            },
        )
        self.assertNotIn("password", channel_layer("redis://h", "")["CONFIG"]["hosts"][0])


class ProductionTest(TestCase):
    """The settings as a server loads them, each time in a process of its own."""

    def run_python(self, code: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-c", code],
            cwd=BASE_DIR,
            env={"PATH": os.environ["PATH"], "DJANGO_SETTINGS_MODULE": "config.settings", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def test_no_secret_key(self):
        done = self.run_python("import django; django.setup()")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("SECRET_KEY is missing", done.stderr)

    def test_no_twisted_for_http(self):
        done = self.run_python("import config.wsgi, sys; print('twisted' in sys.modules)", SECRET_KEY="x" * 50)
        self.assertEqual(done.stdout.strip(), "False", done.stderr)

    def test_the_database_may_be_a_credential(self):
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "DATABASE_URL").write_text("postgresql://shop_1:pw@db/shop")
            code = "import django; django.setup(); from django.conf import settings; print(settings.DATABASES['default']['USER'])"
            done = self.run_python(code, SECRET_KEY="x" * 50, CREDENTIALS_DIRECTORY=folder)
            self.assertEqual(done.stdout.strip(), "shop_1", done.stderr)

    def test_behind_pgbouncer_no_cursor_is_kept_on_the_server(self):
        code = (
            "import django; django.setup(); from django.conf import settings\n"
            "print(settings.DATABASES['default']['DISABLE_SERVER_SIDE_CURSORS'])"
        )
        given = {"SECRET_KEY": "x" * 50, "DATABASE_URL": "postgresql://shop_1:pw@db:6432/shop"}
        for direct, disabled in (("", "False"), ("postgresql://shop_1:pw@db:5432/shop", "True")):
            done = self.run_python(code, **given, DATABASE_DIRECT_URL=direct)
            self.assertEqual(done.stdout.strip(), disabled, done.stderr)

    def test_static_names_have_a_digest(self):
        with tempfile.TemporaryDirectory() as folder:
            code = (
                "import django; django.setup()\n"
                "from django.core.management import call_command\n"
                "from django.templatetags.static import static\n"
                "call_command('collectstatic', interactive=False, verbosity=0); print(static('chat/room.js'))"
            )
            done = self.run_python(code, SECRET_KEY="x" * 50, STATIC_ROOT=folder)
            self.assertRegex(done.stdout, r"^/static/chat/room\.[0-9a-f]{12}\.js$", done.stderr)
            self.assertTrue((Path(folder) / done.stdout.strip().removeprefix("/static/")).exists())
