"""What gixy knows as faults of Nginx configuration is not in the one that the role writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_nginx_templates import CERTIFICATE, TRIXIE, render

APP = {
    "name": "shop",
    "domains": ["shop.example", "shop.test"],
    "aliases": ["www.shop.example"],
    "asgi": "config.asgi:application",
    "websocket_paths": ["/ws/"],
    "tls": "self_signed",
    "nginx": {
        "limit_strict_paths": ["/admin/login/"],
        "streamed_paths": ["/upload/"],
        "pinned_paths": {"/files/": ["10.0.0.11:443"], "/upload/": ["10.0.0.11:443"]},
        "websocket_origins": ["shop.example"],
        "maintenance_bypass": ["192.0.2.0/24"],
    },
}
# What gixy says of this configuration, and why it stays.
KNOWN = {
    "worker_rlimit_nofile_vs_connections": "connections to the apps count among worker_connections, so 2,048 more are for files",
    "ssl_ecdh_curve": "only where nginx -V tells of an OpenSSL that has the group",
    "default_server_flag": "the first server is the default, unless a site that has an address says that it is",
    "try_files_is_evil_too": "open_file_cache would show old files after a switch",
}


def findings(tmp_path: Path, more: str = "") -> list[dict[str, Any]]:
    """Write a tree as it is on a host, and return what gixy finds in it."""
    tree = tmp_path / "quintet"
    (tree / "sites").mkdir(parents=True)
    for name in (
        "nginx.conf",
        "http.conf",
        "limits.conf",
        "listen.conf",
        "proxy.conf",
        "listen_tls.conf",
        "servers/unknown_tls.conf",
    ):
        (tree / name).parent.mkdir(exist_ok=True)
        settings = {
            "nginx_trusted_proxies": ["10.0.0.1"],
            "__nginx_build": TRIXIE,
            "nginx_http3": True,
            "default_server": "",
        }
        (tree / name).write_text(render(f"{Path(name).name}.j2", **settings))
    (tree / "tls_intermediate.conf").write_text(render("tls.conf.j2", __nginx_build=TRIXIE, profile="intermediate"))
    (tree / "sites/shop.conf").write_text(
        render("site.conf.j2", django_app=APP, __nginx_site_certificate=CERTIFICATE) + more
    )
    (tree / "tree.conf").touch()
    (tmp_path / "nginx.conf").write_text("include quintet/nginx.conf;\n")
    gixy = Path(sys.executable).with_name("gixy")
    done = subprocess.run(
        [gixy, "--format", "json", tmp_path / "nginx.conf"], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_gixy_finds_nothing(tmp_path: Path) -> None:
    pytest.importorskip("gixy")
    found = findings(tmp_path)
    assert {one["plugin"] for one in found} >= set(KNOWN), "what gixy no longer says needs no excuse"
    unknown = [one for one in found if one["plugin"] not in KNOWN]
    assert not unknown, "\n".join(f"{one['plugin']}: {one['summary']}\n{one['config']}" for one in unknown)


def test_gixy_looks_into_the_sites(tmp_path: Path) -> None:
    pytest.importorskip("gixy")
    bad = "server {\n    server_name x.test;\n    location /files {\n        alias /srv/files/;\n    }\n}\n"
    assert "alias_traversal" in {one["plugin"] for one in findings(tmp_path, bad)}
