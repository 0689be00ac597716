"""The sample app's WSGI application; with FAULT=boot it can be imported by a build's checks, but not by the service."""

import os

from config.wsgi import application

from faults import FAULT

__all__ = ["application"]

if FAULT == "boot" and "CREDENTIALS_DIRECTORY" in os.environ:
    raise RuntimeError("this generation does not boot")
