"""Requests that no app should have to answer."""

from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

MEBIBYTE = 1024 * 1024


# A POST, since Nginx asks a GET once more when its kept connection ends without an answer: it would take a second worker with it.
@csrf_exempt
@require_POST
def eat(request: HttpRequest) -> JsonResponse:
    """Take `?mebibytes=` of memory and answer with how many that were."""
    wanted = int(request.GET["mebibytes"])
    # Written to, or the kernel would not give it.
    taken = [bytearray(b"x") * MEBIBYTE for _ in range(wanted)]
    return JsonResponse({"mebibytes": len(taken)})
