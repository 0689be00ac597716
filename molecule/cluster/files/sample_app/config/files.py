"""A view that keeps what it is sent as a file, in the directory of uploads."""

import socket

from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def keep(request: HttpRequest, name: str) -> JsonResponse:
    """Keep the body under a name, and answer with the host and where the file is found."""
    saved = default_storage.save(name, ContentFile(request.body))
    return JsonResponse({"host": socket.gethostname(), "url": default_storage.url(saved)}, status=201)
