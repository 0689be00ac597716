"""Rooms, their messages, and who is in them."""

from django.db import models
from django.urls import reverse
from django.utils import timezone


class Room(models.Model):
    """A place where people write to each other."""

    name = models.CharField(max_length=60)
    slug = models.SlugField(max_length=60, unique=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        """Rooms are listed by name."""

        ordering = ("name",)

    def __str__(self) -> str:
        return self.name

    def get_absolute_url(self) -> str:
        """Return the path of the room's page."""
        return reverse("room", args=[self.slug])


class Message(models.Model):
    """Something that a person wrote in a room."""

    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="messages")
    client = models.CharField(max_length=64, blank=True, help_text="The browser or program that sent it.")
    ref = models.CharField(max_length=64, help_text="The client's own name for it, so that a resent one is known.")
    author = models.CharField(max_length=40)
    text = models.TextField()
    sent_at = models.DateTimeField(default=timezone.now)

    class Meta:
        """Messages are read from the last one back."""

        constraints = (models.UniqueConstraint(fields=("room", "client", "ref"), name="message_ref_once"),)
        indexes = (models.Index(fields=("room", "-id"), name="message_history"),)

    def __str__(self) -> str:
        return f"{self.author}: {self.text[:40]}"


class Presence(models.Model):
    """Who one server process has in one room, true until `expires_at` unless it says so again."""

    process = models.UUIDField()
    room = models.ForeignKey(Room, on_delete=models.CASCADE, related_name="+")
    people = models.JSONField(help_text="[[client, name], …]")
    expires_at = models.DateTimeField(db_index=True)

    class Meta:
        """A process has one row a room, which it overwrites."""

        constraints = (models.UniqueConstraint(fields=("process", "room"), name="presence_process_room"),)

    def __str__(self) -> str:
        return f"{len(self.people)} in {self.room_id} on {self.process}"
