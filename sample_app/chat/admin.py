"""Rooms and messages in Django's admin."""

from django.contrib import admin

from chat.models import Message, Room


@admin.register(Room)
class RoomAdmin(admin.ModelAdmin):
    """Rooms, with their address made from their name."""

    list_display = ("name", "slug", "created_at")
    prepopulated_fields = {"slug": ("name",)}  # noqa: RUF012 (Django's own way of declaring it)
    search_fields = ("name",)


@admin.register(Message)
class MessageAdmin(admin.ModelAdmin):
    """Messages, newest first."""

    list_display = ("id", "room", "author", "text", "sent_at")
    list_filter = ("room",)
    list_select_related = ("room",)
    ordering = ("-id",)
    search_fields = ("author", "text")
    readonly_fields = ("client", "ref")
