"""The sample app's settings, and the way in."""

from config.settings import *  # noqa: F403  (Django's way to build upon settings)

ROOT_URLCONF = "intruder.urls"
