"""Whom an edge asks, read from the sites that the role nginx writes."""

from __future__ import annotations

from ansible_collections.quintet.django.plugins.filter.edge_servers import edge_servers
from rendering import Role


def site(name: str, *servers: dict[str, object]) -> str:
    role = Role(
        "nginx", nginx_site_name=name, nginx_site_domains=[f"{name}.example"], nginx_site_http_servers=[*servers]
    )
    return role.render("site.conf.j2")


def test_what_the_role_writes_is_read_back() -> None:
    shop = site(
        "shop", {"server": "10.0.0.11:443", "max_fails": 1, "down": False}, {"server": "[fd00::12]:443", "down": True}
    )
    # Each upstream is of one site, whatever else is there.
    blog = site("blog", {"server": "unix:/srv/blog/current/run/gunicorn.sock"})
    assert edge_servers(shop + blog) == {
        "shop": {"10.0.0.11:443": True, "[fd00::12]:443": False},
        "blog": {"unix:/srv/blog/current/run/gunicorn.sock": True},
    }


def test_a_host_without_sites_asks_nobody() -> None:
    assert edge_servers("") == {}
