"""What every template gets."""

from django.conf import settings
from django.http import HttpRequest


def quintet(request: HttpRequest) -> dict[str, str]:
    """Return the generation that serves this page."""
    return {"quintet_generation": settings.QUINTET_GENERATION}
