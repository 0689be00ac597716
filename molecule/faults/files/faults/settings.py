"""The sample app's settings, and the faults."""

from config.settings import *  # noqa: F403  (Django's way to build upon settings)
from config.settings import INSTALLED_APPS as SAMPLE_APPS

INSTALLED_APPS = [*SAMPLE_APPS, "faults"]
