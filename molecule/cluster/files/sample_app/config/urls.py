"""What each path of the site is answered by, and one path that tells who asked whom."""

from config.telling import telling
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("telling", telling),
    path("admin/", admin.site.urls),
    path("", include("chat.urls")),
]
