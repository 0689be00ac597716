import os
from unittest.mock import patch

from channels.layers import InMemoryChannelLayer
from django.conf import settings
from django.db import OperationalError
from django.test import TestCase, override_settings

from chat import health


class HealthTest(TestCase):
    def test_well(self):
        response = self.client.get("/healthz")
        self.assertEqual(response.status_code, 200)
        self.assertEqual(
            response.json(),
            {
                "status": "ok",
                "database": "ok",
                "channel_layer": "none",
                "generation": settings.QUINTET_GENERATION,
                "process": os.getpid(),
            },
        )
        self.assertIn("no-store", response.headers["Cache-Control"])

    def test_the_database_is_away(self):
        failure = OperationalError("password=secret refused")
        with patch.object(health.connection, "cursor", side_effect=failure), self.assertLogs("chat.health", "ERROR"):
            response = self.client.get("/healthz")
        self.assertEqual(response.status_code, 503)
        self.assertEqual(response.json()["status"], "error")
        self.assertEqual(response.json()["database"], "error: OperationalError")
        self.assertNotIn("secret", response.content.decode())

    @override_settings(CHANNEL_LAYER_URL="redis://somewhere")
    def test_the_channel_layer(self):
        with patch.object(health, "get_channel_layer", return_value=InMemoryChannelLayer()):
            self.assertEqual(self.client.get("/healthz").json()["channel_layer"], "ok")

    @override_settings(CHANNEL_LAYER_URL="redis://somewhere")
    def test_the_channel_layer_is_away(self):
        class Away:
            async def group_send(self, group, message):
                raise ConnectionError("user:secret@somewhere")

        with (
            patch.object(health, "get_channel_layer", return_value=Away()),
            self.assertLogs("chat.health", "ERROR"),
        ):
            response = self.client.get("/healthz")
        self.assertEqual(response.status_code, 503)
        self.assertEqual(response.json()["channel_layer"], "error: ConnectionError")
        self.assertNotIn("secret", response.content.decode())
