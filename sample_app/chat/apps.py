"""The chat as a Django app."""

from django.apps import AppConfig


class ChatConfig(AppConfig):
    """Rooms, messages, presence."""

    name = "chat"
    verbose_name = "Chat"
