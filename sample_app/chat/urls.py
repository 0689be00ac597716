"""The chat's paths."""

from django.urls import path

from chat.health import health
from chat.views import post_message, room, rooms, set_name

urlpatterns = [
    path("", rooms, name="rooms"),
    path("name", set_name, name="name"),
    path("rooms/<slug:slug>/", room, name="room"),
    path("rooms/<slug:slug>/messages", post_message, name="messages"),
    path("healthz", health, name="health"),
]
