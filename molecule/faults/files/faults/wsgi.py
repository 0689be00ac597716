"""The sample app's WSGI application; with FAULT=boot it can be imported by a build's checks, but not by the service.

With FAULT=edge it answers probes on its own socket, but not those that come through Nginx.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from config.wsgi import application as sample

from faults import FAULT

__all__ = ["application"]

if FAULT == "boot" and "CREDENTIALS_DIRECTORY" in os.environ:
    raise RuntimeError("this generation does not boot")


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer as the sample app does, or not."""
    is_probe = environ.get("HTTP_USER_AGENT") == "quintet-probe"
    # Only Nginx sends it.
    if FAULT == "edge" and is_probe and "HTTP_X_REQUEST_ID" in environ:
        start_response("503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"not through Nginx"]
    return sample(environ, start_response)
