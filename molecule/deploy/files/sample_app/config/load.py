"""What the load asks for, a view that says who answers and takes as long as it is told; and one that takes memory."""

import os
import time

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST, require_safe

# The test changes this line: code that is imported late must not be another generation's.
VERSION = "1"

LONGEST_SECONDS = 5.0
MEBIBYTE = 1024 * 1024


@require_safe
def who(request: HttpRequest) -> JsonResponse:
    """Answer after `?seconds=` with the generation, the version of the code and the environment's mark."""
    time.sleep(min(float(request.GET.get("seconds", "0")), LONGEST_SECONDS))
    return JsonResponse(
        {
            "number": request.GET.get("number"),
            "generation": settings.QUINTET_GENERATION,
            "version": VERSION,
            "mark": os.environ["MARK"],
            "process": os.getpid(),
        }
    )


# A POST, since Nginx asks a GET once more when its kept connection ends without an answer: it would take a second worker with it.
@csrf_exempt
@require_POST
def eat(request: HttpRequest) -> JsonResponse:
    """Take `?mebibytes=` of memory and answer with how many that were."""
    wanted = int(request.GET["mebibytes"])
    # Written to, or the kernel would not give it.
    taken = [bytearray(b"x") * MEBIBYTE for _ in range(wanted)]
    return JsonResponse({"mebibytes": len(taken)})
