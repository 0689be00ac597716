"""The sample app's WSGI application; with FAULT=boot it imports everywhere but in Gunicorn."""

import sys

from config.wsgi import application

from faults import FAULT

__all__ = ["application"]

if FAULT == "boot" and "gunicorn" in sys.modules:
    raise RuntimeError("this generation does not boot")
