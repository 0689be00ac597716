"""A WSGI application with nothing but Python: it tells which instance and which process answered."""

import json
import os
from collections.abc import Callable, Iterable
from typing import Any


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer any request with the instance's name, which is in its environment, and the worker's process id."""
    body = json.dumps({"instance": os.environ["HELLO_INSTANCE"], "pid": os.getpid()}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
