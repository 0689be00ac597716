"""The paths of the app, and one more."""

from django.urls import include, path

from faults.views import eat

urlpatterns = [
    path("faults/eat", eat),
    path("", include("config.urls")),
]
