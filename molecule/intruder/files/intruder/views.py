"""What somebody does who has broken into the app."""

import subprocess
import sys

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt

SECONDS = 20
# Well above the app's limit, and little enough for the test's machine where that fails.
MOST_MEBIBYTES = 1024


@csrf_exempt
def run(request: HttpRequest) -> JsonResponse:
    """Run the body as Python in a child of this worker, which has the worker's user, namespaces and filters."""
    command = [sys.executable, "-c", request.body.decode()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    return JsonResponse({"output": done.stdout, "error": done.stderr})


def eat(request: HttpRequest) -> JsonResponse:
    """Take memory until there is none, and tell how much there was if that never comes."""
    taken = []
    while len(taken) < MOST_MEBIBYTES:
        # Written to, or the kernel would not give it.
        taken.append(bytearray(b"x") * 1024 * 1024)
    return JsonResponse({"mebibytes": len(taken)})
