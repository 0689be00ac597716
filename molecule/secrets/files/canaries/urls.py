"""The paths of the app, and what tells its secrets."""

from django.urls import include, path

from canaries.views import digests, sign, unsign

urlpatterns = [
    path("canaries/digests", digests),
    path("canaries/sign", sign),
    path("canaries/unsign", unsign),
    path("", include("config.urls")),
]
