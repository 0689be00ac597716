"""One page that says what the app got."""

import os

from django.http import HttpRequest, JsonResponse
from django.urls import path


def show(request: HttpRequest) -> JsonResponse:
    """Answer with the names of the environment and the generation."""
    return JsonResponse(
        {"generation": os.environ["QUINTET_GENERATION"], "names": sorted(os.environ), "host": request.get_host()}
    )


urlpatterns = [path("", show)]
