"""How a person is shown."""

from django import template

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
