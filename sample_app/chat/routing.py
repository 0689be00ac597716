"""Which consumer answers which WebSocket path."""

from django.urls import path, re_path

from chat.consumers import HealthConsumer, NotFoundConsumer, RoomConsumer

websocket_urlpatterns = [
    path("ws/health/", HealthConsumer.as_asgi()),
    path("ws/rooms/<slug:slug>/", RoomConsumer.as_asgi()),
    # Without it an unknown path is an exception in the log.
    re_path(r"", NotFoundConsumer.as_asgi()),
]
