"""The paths of the app, and the ways in."""

from django.urls import include, path

from intruder.views import eat, run

urlpatterns = [
    path("intruder/run", run),
    path("intruder/eat", eat),
    path("", include("config.urls")),
]
