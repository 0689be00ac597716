"""A WSGI application with nothing but Python: it tells which instance and process answered, and what reached it."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer any request with the instance's name, which is in its environment, the worker's process id, and the request."""
    answer = {
        "instance": os.environ["HELLO_INSTANCE"],
        "pid": os.getpid(),
        "request": {
            "scheme": environ["wsgi.url_scheme"],
            "script_name": environ["SCRIPT_NAME"],
            "client": environ["REMOTE_ADDR"],
            "headers": sorted(
                [name.removeprefix("HTTP_").replace("_", "-").lower(), value]
                for name, value in environ.items()
                if name.startswith("HTTP_")
            ),
        },
    }
    body = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
