"""The app's settings, and what tells its secrets."""

import os

from config.settings import *  # noqa: F403  (Django's way to build upon settings)

ROOT_URLCONF = "canaries.urls"

if os.environ.get("FAULT") == "build":
    raise RuntimeError("told to fail")
