"""The sample app's paths, and the tests' own."""

from config.load import eat, who
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("who", who),
    path("eat", eat),
    path("", include("chat.urls")),
]
