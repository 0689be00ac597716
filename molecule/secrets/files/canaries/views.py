"""Digests of the secrets that this process has, and a cookie that depends on one."""

import hashlib
import os
from pathlib import Path

from django.conf import settings
from django.core import signing
from django.http import HttpRequest, JsonResponse

NAMES = (
    "SECRET_KEY",
    "SECRET_KEY_FALLBACKS",
    "CHANNEL_LAYER_PASSWORD",
    "MAIL_PASSWORD",
    "API_TOKEN",
    "DATABASE_PASSWORD",
    "DATABASE_URL",
)


def digests(request: HttpRequest) -> JsonResponse:
    """Answer with the SHA-256 of each secret that is there, as a file or as a variable, and how it came."""
    directory = Path(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"))
    files = {name: (directory / name).read_text() for name in NAMES if (directory / name).is_file()}
    variables = {name: os.environ[name] for name in NAMES if name in os.environ}
    return JsonResponse(
        {
            "credentials": {name: hashlib.sha256(value.encode()).hexdigest() for name, value in files.items()},
            "environment": {name: hashlib.sha256(value.encode()).hexdigest() for name, value in variables.items()},
            "secret_key": hashlib.sha256(settings.SECRET_KEY.encode()).hexdigest(),
        }
    )


def sign(request: HttpRequest) -> JsonResponse:
    """Answer with a text signed by SECRET_KEY."""
    return JsonResponse({"signed": signing.dumps("canary")})


def unsign(request: HttpRequest) -> JsonResponse:
    """Say whether `?signed=` is good, by SECRET_KEY or one of its fallbacks."""
    try:
        return JsonResponse({"good": signing.loads(request.GET["signed"]) == "canary"})
    except signing.BadSignature:
        return JsonResponse({"good": False})
