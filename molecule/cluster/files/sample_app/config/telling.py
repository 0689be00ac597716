"""A view that tells who asked whom, and ends as it is told."""

import os
import signal
import socket

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def telling(request: HttpRequest) -> JsonResponse:
    """Answer with the host, and with what Django is told of the client; with ?status, or, with ?die, not at all."""
    if "die" in request.GET:
        os.kill(os.getpid(), signal.SIGKILL)
    return JsonResponse(
        {
            "host": socket.gethostname(),
            "generation": os.environ.get("QUINTET_GENERATION"),
            "client": request.headers.get("X-Forwarded-For"),
            "scheme": request.scheme,
            "asked": request.get_host(),
        },
        status=int(request.GET.get("status", 200)),
    )
