"""What each path of the site is answered by, a path that tells who asked whom, and one that the load asks."""

from config.load import who
from config.telling import telling
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("telling", telling),
    path("who", who),
    path("admin/", admin.site.urls),
    path("", include("chat.urls")),
]
