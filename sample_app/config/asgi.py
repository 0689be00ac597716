"""The application for WebSocket, served by Daphne; it answers HTTP as well."""

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from channels.sessions import CookieMiddleware
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
http_application = get_asgi_application()

from chat.routing import websocket_urlpatterns  # noqa: E402 (its models need the apps, which the call above loads)

application = ProtocolTypeRouter(
    {
        "http": http_application,
        # Outermost, so that no other site's page gets as far as a consumer.
        "websocket": AllowedHostsOriginValidator(CookieMiddleware(URLRouter(websocket_urlpatterns))),
    }
)
