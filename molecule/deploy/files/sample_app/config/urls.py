"""The sample app's paths, and the load's."""

from config.load import who
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("who", who),
    path("", include("chat.urls")),
]
