"""How a person is shown."""

from datetime import datetime, timedelta

from django import template
from django.utils import timezone
from django.utils.timesince import timesince

HUES = 8

register = template.Library()


@register.filter
def hue(name: str) -> int:
    """Return which of the avatars' colours a name gets: the same as hue() in room.js."""
    return sum(ord(character) for character in name) % HUES


@register.filter
def initial(name: str) -> str:
    """Return the letter in a name's avatar."""
    return name[:1].upper()


@register.filter
def ago(moment: datetime) -> str:
    """Return how long ago a moment was, in its largest unit."""
    now = timezone.now()
    return "just now" if now - moment < timedelta(minutes=1) else f"{timesince(moment, now, depth=1)} ago"
