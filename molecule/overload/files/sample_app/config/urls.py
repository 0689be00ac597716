"""The sample app's paths, and those of the tests."""

from config.trial import fail, tell, wait
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("wait", wait),
    path("tell", tell),
    path("ws/tell", tell),  # by Daphne
    path("tell/<path:rest>", tell),
    path("fail/<int:status>", fail),
    path("", include("chat.urls")),
]
