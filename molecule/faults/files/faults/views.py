"""Requests that no app should have to answer."""

from django.http import HttpRequest, JsonResponse

MEBIBYTE = 1024 * 1024


def eat(request: HttpRequest) -> JsonResponse:
    """Take `?mebibytes=` of memory and answer with how many that were."""
    wanted = int(request.GET["mebibytes"])
    # Written to, or the kernel would not give it.
    taken = [bytearray(b"x") * MEBIBYTE for _ in range(wanted)]
    return JsonResponse({"mebibytes": len(taken)})
