"""What each path of the site is answered by, with paths that tell who asked whom, keep files, and one that the load asks."""

from config.files import keep
from config.load import who
from config.telling import telling
from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("telling", telling),
    # By the edge's way for uploads, and by another one.
    path("upload/<str:name>", keep),
    path("elsewhere/<str:name>", keep),
    path("who", who),
    path("admin/", admin.site.urls),
    path("", include("chat.urls")),
]
