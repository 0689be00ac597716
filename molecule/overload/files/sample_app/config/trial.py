"""Views that no app should have: one that waits, one that tells what reached it, one that answers with an error."""

import time

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt

LONGEST_SECONDS = 10.0


def wait(request: HttpRequest) -> HttpResponse:
    """Answer after `?seconds=`."""
    time.sleep(min(float(request.GET.get("seconds", "0")), LONGEST_SECONDS))
    return HttpResponse("waited", content_type="text/plain")


@csrf_exempt
def tell(request: HttpRequest, rest: str = "") -> JsonResponse:
    """Answer with the request's path, body and headers as they reached the app."""
    known = {name: value for name, value in request.META.items() if isinstance(value, str) and name.isupper()}
    return JsonResponse(
        {"path": request.get_full_path(), "host": request.get_host(), "secure": request.is_secure(), "rest": rest}
        | {"method": request.method, "body": request.body.decode("latin-1"), "environment": known}
    )


def fail(request: HttpRequest, status: int) -> HttpResponse:
    """Answer with an error of the app's own, and with headers of its own."""
    return HttpResponse("the app's own", status=status, content_type="text/plain", headers={"X-Frame-Options": "DENY"})
