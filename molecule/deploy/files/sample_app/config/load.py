"""A view that says who answers and takes as long as it is told: what the load asks for."""

import os
import time

from django.conf import settings
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_safe

# The test changes this line: code that is imported late must not be another generation's.
VERSION = "1"

LONGEST_SECONDS = 5.0


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
