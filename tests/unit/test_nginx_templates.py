"""The templates and defaults of the role nginx, rendered for the corners."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import acme
import pytest
import rendering
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from rendering import Role

ROLE = Path(__file__).parents[2] / "roles/nginx"
SERVER = "unix:/run/shop/gunicorn.sock"


def load(path: str) -> Any:
    return rendering.load(ROLE / path)


def render(template: str, **variables: Any) -> str:
    """Render a template of the role with its defaults, as a play would."""
    return rendered(template, json.dumps(variables))


@cache
def rendered(template: str, variables: str) -> str:
    """Render a template with variables as JSON; many tests look at the same text."""
    known = {
        **load("vars/main.yml"),
        **load("defaults/main.yml"),
        "ansible_facts": {},
        "ansible_managed": "Ansible managed",
        "ansible_search_path": [str(ROLE)],
    }
    # By the lookup, as the role does: templates include others.
    looked_up = trust_as_template("{{ lookup('quintet.django.template', '" + template + "') }}")
    return str(Templar(DataLoader(), variables={**known, **json.loads(variables)}).template(looked_up) or "")


def site(**variables: Any) -> str:
    plain = {
        "nginx_site_name": "shop",
        "nginx_site_domains": ["shop.example"],
        "nginx_site_http_servers": [{"server": SERVER}],
    }
    given = {f"nginx_site_{name}": value for name, value in variables.items()}
    assert render("site_faults.j2", **{**plain, **given}).strip() == ""
    return render("site.conf.j2", **{**plain, **given})


def app_site(**app: Any) -> str:
    app = {"name": "shop", "domains": ["shop.example"], **app}
    assert render("site_faults.j2", django_app=app).strip() == ""
    return render("site.conf.j2", django_app=app)


def block(text: str, head: str) -> str:
    """Return the block that begins with that line, to the bracket that closes it at the same depth."""
    match = re.search(rf"^( *){re.escape(head)} \{{\n(.*?)^\1\}}\n", text, re.M | re.S)
    assert match, f"no block '{head}' in:\n{text}"
    return match[2]


def blocks(text: str, pattern: str) -> list[str]:
    return re.findall(rf"^ *({pattern}) \{{$", text, re.M)


def test_a_bare_http_site_has_one_upstream_and_one_location() -> None:
    text = site()
    assert blocks(text, "upstream .*") == ["upstream shop-http", "upstream shop-reserved"]
    assert blocks(text, "location [/=].*") == ["location /", "location = /healthz"]
    assert f"    server {SERVER} max_conns=256;\n" in block(text, "upstream shop-http")
    assert "include quintet/proxy.conf;" in block(text, "location /")
    assert "server_name shop.example;" in text


def test_braces_are_balanced_and_blank_lines_single() -> None:
    for text in (
        site(),
        app_site(
            asgi="config.asgi:application",
            aliases=["www.shop.example"],
            nginx={"extra": "location = /x {\n    return 204;\n}"},
        ),
        render(
            "http.conf.j2",
            nginx_http_extra="limit_req_zone $remote_addr zone=x:1m rate=1r/s;",
            nginx_trusted_proxies=["10.0.0.1"],
        ),
        render("http.conf.j2", nginx_gzip=False),
    ):
        code = re.sub(r'"[^"]*"|#.*', "", text)
        assert code.count("{") == code.count("}")
        assert "\n\n\n" not in text
        assert text.endswith("\n")
        assert not text.endswith("\n\n")


def test_an_app_with_channels_is_split_by_path() -> None:
    text = app_site(asgi="config.asgi:application", websocket_paths=["/ws/", "/live/"])
    assert blocks(text, "location /.*") == ["location /", "location /ws/", "location /live/"]
    websocket = block(text, "location /live/")
    assert "proxy_pass http://shop-websocket;" in websocket
    assert "proxy_set_header Upgrade $quintet_upgrade;" in websocket
    assert "proxy_set_header Connection $quintet_connection;" in websocket
    assert "proxy_read_timeout 75s;" in websocket
    plain = block(text, "location /")
    assert "proxy_pass http://shop-http;" in plain
    assert 'proxy_set_header Connection "";' in plain
    assert "Upgrade" not in plain
    assert "unix:/srv/shop/current/run/daphne.sock;" in block(text, "upstream shop-websocket")
    assert "keepalive" not in block(text, "upstream shop-websocket")
    assert "unix:/srv/shop/current/run/gunicorn.sock max_conns=256;" in block(text, "upstream shop-http")


def test_an_app_without_channels_is_not_split() -> None:
    text = app_site(asgi="", websocket_paths=["/ws/"])
    assert "websocket" not in text
    assert blocks(text, "location /.*") == ["location /"]


def test_the_keys_of_an_app_reach_the_site() -> None:
    text = app_site(
        static_url="https://cdn.example/static/",
        media_url="",
        nginx={"http_timeout": 7, "client_max_body_size": "1m", "gzip": False, "keepalive": 0},
    )
    assert "proxy_read_timeout 7s;" in text
    assert "client_max_body_size 1m;" in text
    assert "gzip off;" in text
    assert "keepalive" not in text
    assert "alias /srv" not in text


def test_every_site_variable_has_its_key_in_the_app() -> None:
    for name, value in load("defaults/main.yml").items():
        key = name.removeprefix("nginx_site_")
        if key not in (name, "name"):
            assert f"django_app.nginx.{key} | default(" in re.sub(r"\s+", " ", value), name


def test_several_servers_share_their_state_and_carry_their_options() -> None:
    text = site(
        http_servers=[
            {"server": "10.0.0.1:8000", "weight": 3, "max_conns": 9, "max_fails": 0, "fail_timeout": 30},
            {"server": "10.0.0.2:8000", "down": True, "backup": False},
            {"server": "[fd00::1]:8000", "backup": True},
        ],
        http_balance="hash $request_uri consistent",
    )
    upstream = block(text, "upstream shop-http")
    lines = [line.strip() for line in upstream.splitlines()]
    assert "server 10.0.0.1:8000 weight=3 max_conns=9 max_fails=0 fail_timeout=30s;" in lines
    assert "server 10.0.0.2:8000 max_conns=256 down;" in lines
    assert "server [fd00::1]:8000 max_conns=256 backup;" in lines
    assert "zone shop-http 64k;" in lines
    assert lines.index("hash $request_uri consistent;") < lines.index("keepalive 16;"), "Nginx wants the method first"
    assert "keepalive_time 10s;" in lines


def test_aliases_are_redirected_with_scheme_port_and_path() -> None:
    text = site(domains=["shop.example", "*.shop.example"], aliases=["www.example", "old.example"], alias_status=301)
    assert (
        "server_name www.example old.example;\n    return 301 $quintet_scheme://shop.example$quintet_port$request_uri;"
        in text
    )
    assert "server_name shop.example *.shop.example;" in text
    assert text.count("include quintet/listen.conf;") == 2


def test_an_asgi_only_site_needs_no_http_server() -> None:
    text = site(http_servers=[], websocket_servers=[{"server": SERVER}], websocket_paths=["/"])
    assert blocks(text, "upstream .*") == ["upstream shop-websocket"]
    assert blocks(text, "location /.*") == ["location /"]
    assert "proxy_pass http://shop-websocket;" in text


def test_streamed_paths_are_not_buffered() -> None:
    text = site(streamed_paths=["/upload/"])
    assert "proxy_request_buffering off;" in block(text, "location /upload/")
    assert "proxy_request_buffering on;" in block(text, "location /")


def test_files_are_served_between_slashes_and_without_dotfiles() -> None:
    text = site(static_url="/assets", static_root="/srv/x/static", media_root="/srv/x/media/")
    static, media = block(text, "location ^~ /assets/"), block(text, "location ^~ /media/")
    assert "alias /srv/x/static/;" in static
    assert "gzip_static on;" in static
    assert "alias /srv/x/media/;" in media
    assert "disable_symlinks if_not_owner from=/srv/x/media;" in media
    for files in (static, media):
        assert "location ~ /[.] {\n            return 404;" in files
        assert "add_header X-Content-Type-Options nosniff;" in files


def test_what_the_static_directory_lacks_comes_from_the_pool() -> None:
    text = site(static_url="/deep/assets/", static_root="/srv/x/static", static_pool_root="/srv/x/pool")
    static = block(text, "location ^~ /deep/assets/")
    pool = block(text, "location ^~ /quintet-static-pool/deep/assets/")
    assert "try_files $uri /quintet-static-pool$uri;" in static
    assert "alias /srv/x/pool/;" in pool
    assert pool.startswith("        internal;\n"), "dotfiles are refused on the way here only"
    assert "try_files $uri =404;" in pool
    for line in (
        "gzip_static on;",
        "add_header Cache-Control $quintet_shop_static_cache;",
        "X-Content-Type-Options nosniff;",
    ):
        assert line in static
        assert line in pool
    # The rule for what is immutable sees the path that was asked for.
    assert "map $quintet_shop_static_path $quintet_shop_static_cache {" in text
    assert '"~^/quintet-static-pool(/.*)$" $1;' in block(text, "map $uri $quintet_shop_static_path")


def test_no_pool_no_fallback() -> None:
    for text in (
        site(static_root="/srv/x/static"),
        site(static_pool_root="/srv/x/pool"),
        app_site(static_url=""),
        app_site(nginx={"static_pool_root": ""}),
    ):
        assert "try_files" not in text
        assert "quintet-static-pool" not in text
    assert "alias /srv/shop/static-pool/;" in app_site()


@pytest.mark.parametrize(
    ("path", "immutable"),
    [
        ("/static/app.0123456789ab.css", True),
        ("/static/a.b/app.0123456789ab.min.js", True),
        ("/static/app.css", False),
        ("/static/app.0123456789AB.css", False),
        ("/static/app.0123456789abc.css", False),
        ("/static/0123456789ab", False),
    ],
)
def test_hashed_names_are_immutable(path: str, immutable: bool) -> None:
    text = block(site(static_root="/srv/x"), "map $uri $quintet_shop_static_cache")
    match = re.search(r'"~(.*)" "public, max-age=31536000, immutable";', text)
    assert match
    assert bool(re.search(match[1], path)) is immutable


def test_a_regular_expression_survives_quoting() -> None:
    text = site(static_root="/srv/x", static_immutable=r'-[\w"]{8}\.')
    assert r'"~-[\\w\"]{8}\\."' in text


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/media/a.png", True),
        ("/media/a.PNG", True),
        ("/media/a.svg", False),
        ("/media/a.png.html", False),
        ("/media/png", False),
    ],
)
def test_what_a_browser_would_run_is_a_download(path: str, shown: bool) -> None:
    text = block(site(media_root="/srv/x"), "map $uri $quintet_shop_media_disposition")
    assert "default attachment;" in text
    match = re.search(r'"~\*(.*)" "";', text)
    assert match
    assert bool(re.search(match[1], path, re.I)) is shown


def test_names_of_two_apps_do_not_meet() -> None:
    def names(name: str) -> set[str]:
        text = app_site(name=name, asgi="x:y", domains=[f"{name.replace('_', '-')}.example"])
        return set(re.findall(r"^upstream (\S+)|^map \S+ (\S+)", text, re.M))

    assert not names("a") & names("a_http")
    assert not names("a") & names("a_static")


def test_forwarding_headers_are_overwritten_or_blanked() -> None:
    text = render("proxy.conf.j2")
    assert "proxy_set_header X-Forwarded-For $remote_addr;" in text
    assert "proxy_set_header X-Forwarded-Proto $quintet_scheme;" in text
    assert "proxy_set_header Host $host$quintet_port;" in text
    for header in (
        "Forwarded",
        "X-Forwarded-Host",
        "X-Forwarded-Ssl",
        "Script-Name",
        "Daphne-Root-Path",
        "Remote-User",
        "Proxy",
    ):
        assert f'proxy_set_header {header} "";' in text
    assert "$proxy_add_x_forwarded_for" not in text
    names = re.findall(r"^proxy_set_header (\S+)", text, re.M)
    assert len(names) == len({name.lower() for name in names})


def test_without_load_balancers_nobody_is_believed() -> None:
    text = render("http.conf.j2")
    assert "set_real_ip_from" not in text
    assert "real_ip_header" not in text
    assert "default 0;" in block(text, "geo $realip_remote_addr $quintet_trusted")
    assert " 1;" not in block(text, "geo $realip_remote_addr $quintet_trusted")


def test_load_balancers_are_believed_about_address_and_scheme() -> None:
    text = render("http.conf.j2", nginx_trusted_proxies=["10.0.0.1", "fd00::/8"])
    assert "set_real_ip_from 10.0.0.1;\nset_real_ip_from fd00::/8;\n" in text
    assert "fd00::/8 1;" in block(text, "geo $realip_remote_addr $quintet_trusted")
    assert '"1 https" https;' in text


@pytest.mark.parametrize(("addresses", "listens"), [([], 1), (["fe80::1"], 2)])
def test_ipv6_follows_the_host(addresses: list[str], listens: int) -> None:
    facts = {"all_ipv6_addresses": addresses}
    listen = render("listen.conf.j2", ansible_facts=facts, nginx_http_port=8080)
    assert len(re.findall(r"^listen .*8080;$", listen, re.M)) == listens
    assert (
        len(
            re.findall(
                r"listen .*8080 default_server", render("http.conf.j2", ansible_facts=facts, nginx_http_port=8080)
            )
        )
        == listens
    )


def test_unknown_hosts_get_no_answer() -> None:
    assert "return 444;" in block(render("http.conf.j2"), "server")


@pytest.mark.parametrize(
    ("fault", "names"),
    [
        ({"domains": []}, "nginx_site_domains"),
        ({"domains": ["https://shop.example"]}, "'https://shop.example'"),
        ({"domains": ["shop.example; }"]}, "'shop.example; }'"),
        ({"domains": ["shop.example\n"]}, "is no host name"),
        ({"domains": ["a.example", "A.example"]}, "there twice"),
        ({"aliases": ["shop.example"]}, "there twice"),
        ({"domains": ["*.shop.example"], "aliases": ["x.example"]}, "plain host name first"),
        ({"http_servers": []}, "nginx_site_http_servers"),
        ({"http_servers": [{"server": "unix:relative.sock"}]}, "'unix:relative.sock'"),
        ({"http_servers": [{"server": "http://10.0.0.1"}]}, "'http://10.0.0.1'"),
        ({"http_balance": "leastconn"}, "'leastconn'"),
        ({"streamed_paths": ["upload/"]}, "'upload/'"),
        ({"streamed_paths": ["/up load/"]}, "'/up load/'"),
        ({"websocket_servers": [{"server": SERVER}], "streamed_paths": ["/ws/"]}, "there twice"),
        ({"static_root": "/srv/../etc"}, "nginx_site_static_root"),
        ({"static_root": "/"}, "nginx_site_static_root"),
        ({"static_root": "static"}, "nginx_site_static_root"),
        ({"static_pool_root": "/srv/a b"}, "nginx_site_static_pool_root"),
        ({"media_root": "/srv/$host"}, "nginx_site_media_root"),
        ({"static_url": "/"}, "nginx_site_static_url"),
        ({"media_url": "/me dia/"}, "nginx_site_media_url"),
        ({"media_inline": ["p|html"]}, "nginx_site_media_inline"),
    ],
)
def test_what_nginx_would_misread_is_refused(fault: dict[str, Any], names: str) -> None:
    plain = {"name": "shop", "domains": ["shop.example"], "http_servers": [{"server": SERVER}]}
    text = render("site_faults.j2", **{f"nginx_site_{name}": value for name, value in {**plain, **fault}.items()})
    assert names in text
    assert len(text.strip().splitlines()) <= 2 + names.count("is no host name")


def test_the_specs_name_every_default_with_its_value() -> None:
    specs = load("meta/argument_specs.yml")["argument_specs"]
    options = {**specs["main"]["options"], **specs["site"]["options"]}
    defaults = load("defaults/main.yml")
    assert set(defaults) == set(options) - {"django_app"}
    for name, value in defaults.items():
        resolved = (
            Templar(DataLoader(), variables={**defaults, "ansible_facts": {}}).template(value)
            if name != "nginx_site_name"
            else None
        )
        if "default" in options[name]:
            assert options[name]["default"] == resolved, name


# ---- what each client may -----------------------------------------------------------------------------------------


def matched(text: str, variable: str, value: str) -> str:
    """Return what a map of the configuration makes of a value, as Nginx would: the first regular expression that fits, else the default."""
    lines = block(text, variable).splitlines()
    entries = [re.fullmatch(r' *"?~(\*?)(.*?)"? (\S+);', line) for line in lines]
    for found in filter(None, entries):
        if re.search(found[2], value, re.IGNORECASE if found[1] else 0):
            return found[3].strip('"')
    return re.search(r"default (\S+);", block(text, variable))[1].strip('"')  # type: ignore[index]


def test_limits_are_made_for_an_office() -> None:
    text = app_site(asgi="config.asgi:application", websocket_paths=["/ws/"])
    for line in (
        "limit_req_zone $quintet_shop_request zone=shop-requests:10m rate=50r/s;",
        "limit_req_zone $quintet_shop_handshake zone=shop-handshakes:10m rate=50r/s;",
        "limit_req zone=shop-requests burst=200 delay=10;",
        "limit_req zone=shop-handshakes burst=500 delay=10;",
        "limit_conn shop-connections 100;",
        "limit_conn shop-files 1000;",
        "limit_conn shop-websockets 1000;",
    ):
        assert line in text
    assert "shop-strict" not in text


def test_each_limit_can_be_set_and_left_out() -> None:
    numbers = {
        "limit_requests": 7,
        "limit_requests_burst": 5,
        "limit_websockets": 3,
        "limit_strict": 9,
        "limit_strict_burst": 4,
    }
    text = app_site(
        asgi="a:b",
        websocket_paths=["/ws/"],
        nginx={
            **numbers,
            "limit_handshakes": 0,
            "limit_connections": 0,
            "limit_strict_paths": ["/login/"],
            "http_max_conns": 0,
        },
    )
    assert "rate=7r/s;" in text
    assert "limit_req zone=shop-requests burst=5 delay=5;" in text
    assert "limit_conn shop-websockets 3;" in text
    assert "zone=shop-strict:10m rate=9r/m;" in text
    assert "limit_req zone=shop-strict burst=4 nodelay;" in text
    for absent in ("handshakes", "shop-connections", "max_conns"):
        assert absent not in text


@pytest.mark.parametrize(
    ("burst", "at_once", "line"),
    [
        (0, 10, "limit_req zone=shop-requests;"),
        (5, 0, "limit_req zone=shop-requests burst=5;"),
        (5, 3, "limit_req zone=shop-requests burst=5 delay=3;"),
        (5, 10, "limit_req zone=shop-requests burst=5 delay=5;"),
    ],
)
def test_a_burst_waits_its_turn_but_for_a_few(burst: int, at_once: int, line: str) -> None:
    assert line in app_site(nginx={"limit_requests_burst": burst, "limit_requests_at_once": at_once})


@pytest.mark.parametrize(
    ("upgrade", "path", "kind"),
    [
        ("", "/", "request"),
        ("websocket", "/", "request"),
        ("websocket", "/ws/room/", "handshake"),
        ("", "/ws/room/", "request"),
        ("websocket", "/static/a.css", "file"),
        ("", "/static/a.css", "file"),
        ("", "/media/a.png", "file"),
        ("", "/x/static/a.css", "request"),
        ("websocket", "/x/ws/", "request"),
        ("", "/quintet-errors/429.html", "error"),
    ],
)
def test_what_a_request_is_counted_as(upgrade: str, path: str, kind: str) -> None:
    text = app_site(asgi="a:b", websocket_paths=["/ws/"])
    assert matched(text, 'map "$quintet_upgrade:$uri" $quintet_shop_kind', f"{upgrade}:{path}") == kind


@pytest.mark.parametrize(
    ("method", "path", "strict"), [("POST", "/login/", "1"), ("GET", "/login/", "0"), ("POST", "/", "0")]
)
def test_what_a_stricter_limit_counts(method: str, path: str, strict: str) -> None:
    text = app_site(nginx={"limit_strict_paths": ["/login/"]})
    assert matched(text, 'map "$request_method:$uri" $quintet_shop_tries', f"{method}:{path}") == strict


@pytest.mark.parametrize(
    ("origin", "foreign"),
    [
        ("https://a.example", "0"),
        ("http://A.example:8000", "0"),
        ("https://a-example", "1"),
        ("https://a.example.evil", "1"),
        ("", "1"),
    ],
)
def test_whose_pages_may_open_websockets(origin: str, foreign: str) -> None:
    text = app_site(asgi="a:b", websocket_paths=["/ws/"], nginx={"websocket_origins": ["a.example"]})
    assert matched(text, 'map "$quintet_upgrade:$http_origin" $quintet_shop_foreign', f"websocket:{origin}") == foreign
    assert matched(text, 'map "$quintet_upgrade:$http_origin" $quintet_shop_foreign', f":{origin}") == "0"
    assert "if ($quintet_shop_foreign)" in block(text, "location /ws/")
    assert "_foreign" not in app_site(asgi="a:b", websocket_paths=["/ws/"])


@pytest.mark.parametrize(
    ("address", "client"),
    [
        (bytes([192, 0, 2, 7]), bytes([192, 0, 2, 7])),
        (bytes(10) + b"\xff\xff" + bytes([192, 0, 2, 7]), bytes([192, 0, 2, 7])),
        (bytes(range(16)), bytes(range(8))),
        (b"\n" * 16, b"\n" * 8),
    ],
)
def test_a_client_is_an_address_or_a_network(address: bytes, client: bytes) -> None:
    text = render("limits.conf.j2")
    patterns = re.findall(r'"~(.*)" \$quintet_client_', block(text, "map $binary_remote_addr $quintet_client"))
    assert len(patterns) == 2
    found = [re.search(pattern.replace(r"\z", r"\Z").replace("(?<", "(?P<").encode(), address) for pattern in patterns]
    assert next((match[1] for match in found if match), address) == client


def test_what_the_edge_adds_to_answers() -> None:
    text = app_site(nginx={"security_headers": {"X-Frame-Options": "", "Permissions-Policy": "camera=()"}})
    assert "X-Frame-Options" not in text
    assert (
        'map $upstream_http_permissions_policy $quintet_shop_permissions_policy {\n    default "";\n    "" "camera=()";'
        in text
    )
    for head in ("location ^~ /static/", "location ^~ /media/", "location ^~ /quintet-errors/"):
        assert "add_header Permissions-Policy $quintet_shop_permissions_policy always;" in block(text, head)


def test_maintenance_is_a_file_that_some_pass() -> None:
    text = app_site(nginx={"maintenance_bypass": ["192.0.2.0/24"], "maintenance_retry_after": 60})
    assert "if (-f /var/lib/quintet-edge/shop.maintenance)" in text
    assert "127.0.0.1 1;\n    ::1 1;\n    192.0.2.0/24 1;" in block(text, "geo $quintet_shop_bypass")
    retry = 'map "$status:$quintet_503" $quintet_shop_retry_after'
    for value, seconds in {
        "503:maintenance": "60",
        "503:unavailable": "10",
        "429:unavailable": "5",
        "404:unavailable": "",
    }.items():
        assert matched(text, retry, value) == seconds


def test_pages_of_errors_are_small_and_need_nothing_else() -> None:
    for page in load("vars/main.yml")["__nginx_error_pages"].values():
        html, program = render("error.html.j2", page=page), render("error.json.j2", page=page)
        assert html.startswith("<!doctype html>")
        assert page["text"] in html
        assert len(html) < 1024
        assert not re.search(r"https?:|src=|href=|Ansible|quintet", html)
        assert json.loads(program) == {"error": page["title"], "message": page["text"]}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"limit_exempt": ["office"]}, "'office' is no address"),
        ({"maintenance_bypass": ["10.0.0.1; }"]}, "'10.0.0.1; }' is no address"),
        ({"limit_requests": -1}, "nginx_site_limit_requests: -1 is below 0"),
        ({"limit_strict_paths": ["login"]}, "'login' is no path"),
        ({"limit_strict_paths": ["/login/"], "limit_strict": 0}, "would let none through"),
        ({"reserved_paths": ["/a b"]}, "'/a b' is no path"),
        ({"websocket_origins": ["https://a.example"]}, "'https://a.example' is no host name"),
        ({"websocket_origins": ["*.a.example"]}, "'*.a.example' is no host name"),
        ({"security_headers": {"X-A": 'a"; }'}}, "cannot be a header"),
        ({"security_headers": {"X A": "b"}}, "cannot be a header"),
    ],
)
def test_what_the_edge_would_misread_is_refused(settings: dict[str, Any], said: str) -> None:
    app = {"name": "shop", "domains": ["shop.example"], "nginx": settings}
    assert said in render("site_faults.j2", django_app=app)


BOOKWORM = {
    "stderr": "nginx version: nginx/1.22.1\nbuilt with OpenSSL 3.0.15 3 Sep 2024 (running with OpenSSL 3.0.19 27 Jan 2026)\n"
    "configure arguments: --with-http_v2_module"
}
TRIXIE = {
    "stderr": "nginx version: nginx/1.26.3\nbuilt with OpenSSL 3.5.7 9 Jun 2026\n"
    "configure arguments: --with-http_v2_module --with-http_v3_module"
}
IPV6 = {"all_ipv6_addresses": ["2001:db8::7"]}
CERTIFICATE = "/etc/nginx/quintet-tls/shop/0123456789abcdef"


def secure_site(**app: Any) -> str:
    app = {"name": "shop", "domains": ["shop.example"], "tls": "self_signed", **app}
    assert render("site_faults.j2", django_app=app).strip() == ""
    return render("site.conf.j2", django_app=app, __nginx_site_certificate=CERTIFICATE)


def servers(text: str) -> list[str]:
    return re.findall(r"^server \{\n(.*?)^\}\n", text, re.M | re.S)


def test_without_tls_nothing_of_it_is_in_a_site() -> None:
    # What YAML reads off as is off, too.
    for tls in ("off", False):
        text = app_site(tls=tls, aliases=["old.example"])
        assert not re.search("tls|ssl|443|Strict|Alt-Svc|https:", text)
        assert "include quintet/listen.conf;" in text


def test_with_tls_plain_http_is_redirected_to_the_same_name() -> None:
    redirect, alias, main = servers(secure_site(aliases=["old.example"]))
    assert "include quintet/listen.conf;" in redirect
    assert "server_name shop.example old.example;" in redirect
    assert "return 308 https://$host$request_uri;" in redirect
    for server in (alias, main):
        assert "listen.conf" not in server
        assert "include quintet/listen_tls.conf;\n    include quintet/tls_intermediate.conf;" in server
        assert f"ssl_certificate {CERTIFICATE}/certificate.pem;" in server
        assert f"ssl_certificate_key {CERTIFICATE}/key.pem;" in server
    assert "return 308 $quintet_scheme://shop.example$quintet_port$request_uri;" in alias


def test_the_redirect_may_be_another_or_none_and_knows_the_port() -> None:
    assert "return 301 https://$host$request_uri;" in secure_site(nginx={"tls_redirect": 301})
    (both,) = servers(secure_site(nginx={"tls_redirect": 0}))
    assert "include quintet/listen.conf;\n    include quintet/listen_tls.conf;" in both
    app = {"name": "shop", "domains": ["shop.example"], "tls": "self_signed"}
    text = render("site.conf.j2", django_app=app, __nginx_site_certificate=CERTIFICATE, nginx_https_port=8443)
    assert "return 308 https://$host:8443$request_uri;" in text


def test_every_location_with_headers_of_its_own_says_hsts_and_http3() -> None:
    text = secure_site(asgi="config.asgi:application", aliases=["old.example"])
    for body in re.findall(r"\{\n([^{}]*add_header[^{}]*)", text):
        assert "add_header Strict-Transport-Security $quintet_shop_hsts always;" in body
        assert "add_header Alt-Svc $quintet_alt_svc always;" in body


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({}, "max-age=300"),
        ({"tls_hsts": 0}, "max-age=0"),
        ({"tls_hsts": 63072000, "tls_hsts_subdomains": True}, "max-age=63072000; includeSubDomains"),
        (
            {"tls_hsts": 63072000, "tls_hsts_subdomains": True, "tls_hsts_preload": True},
            "max-age=63072000; includeSubDomains; preload",
        ),
    ],
)
def test_hsts_is_short_unless_told_otherwise_and_over_tls_alone(settings: dict[str, Any], value: str) -> None:
    text = secure_site(nginx=settings)
    head = 'map "$https:$upstream_http_strict_transport_security" $quintet_shop_hsts'
    assert block(text, head) == f'    default "";\n    "on:" "{value}";\n'


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tls_hsts_preload": True}, "nginx_site_tls_hsts_preload: browsers' lists take no site"),
        ({"tls_hsts_preload": True, "tls_hsts": 63072000}, "nginx_site_tls_hsts_preload"),
        ({"tls_hsts_preload": True, "tls_hsts_subdomains": True, "tls_hsts": 86400}, "nginx_site_tls_hsts_preload"),
        ({"security_headers": {"strict-Transport-security": "max-age=1"}}, "which nginx_site_tls_hsts sends"),
        ({"tls_hsts": -1}, "nginx_site_tls_hsts: -1 is below 0"),
        ({"tls_days": 2}, "nginx_site_tls_days: 2 leaves no time"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(settings: dict[str, Any], said: str) -> None:
    app = {"name": "shop", "domains": ["shop.example"], "tls": "self_signed", "nginx": settings}
    assert said in render("site_faults.j2", django_app=app)


def test_who_asks_for_an_address_names_no_host_in_tls() -> None:
    assert "include quintet/listen_tls_default.conf;" in secure_site(domains=["192.0.2.7", "shop.example"])
    assert "include quintet/listen_tls_default.conf;" in secure_site(aliases=["[2001:db8::7]"])
    assert "listen_tls_default" not in secure_site(domains=["10.example", "1.2.3.4.example"])


@pytest.mark.parametrize(
    ("domains", "aliases", "speaker"),
    [
        (["shop.example", "192.0.2.7"], ["www.shop.example"], "shop.example 192.0.2.7"),
        (["shop.example"], ["www.shop.example", "192.0.2.7"], "www.shop.example 192.0.2.7"),
        (["192.0.2.7"], ["192.0.2.8"], "192.0.2.7"),
    ],
)
def test_one_server_of_a_site_speaks_for_an_address(domains: list[str], aliases: list[str], speaker: str) -> None:
    # Nginx takes a second one for an error.
    text = secure_site(domains=domains, aliases=aliases)
    (server,) = [one for one in servers(text) if "include quintet/listen_tls_default.conf;" in one]
    assert f"server_name {speaker};" in server


def test_by_acme_the_authoritys_questions_are_answered_by_plain_http() -> None:
    for app in ({}, {"nginx": {"tls_redirect": 0}}):
        text = secure_site(tls="acme", **app)
        (plain,) = [one for one in servers(text) if "include quintet/listen.conf;" in one]
        challenge = block(plain, "location ^~ /.well-known/acme-challenge/")
        assert "root /var/lib/quintet-edge/challenges;" in challenge
    # Maintenance lasts for days at times.
    assert "if ($uri ~ ^/(quintet-errors|[.]well-known/acme-challenge)/) {" in text
    # Where the server has no such place itself, the path leads to the app, which is closed.
    assert "acme-challenge" not in servers(secure_site(tls="acme"))[-1]
    assert "acme-challenge" not in secure_site()


def test_by_acme_the_host_changes_its_certificate_by_itself() -> None:
    role = Role("nginx", nginx_site_name="shop", nginx_site_domains=["a.test"], nginx_site_tls="acme")
    assert role.evaluate("__nginx_site_certificate") == "/etc/nginx/quintet-tls/shop/acme"
    files = {one["path"]: one for one in role.evaluate("__nginx_acme_files")}
    assert json.loads(files["/etc/nginx/quintet-tls/shop/acme.json"]["content"]) == {
        "names": ["a.test"],
        "directory": "",
        "staging": False,
        "email": "",
        "bundle": "",
        "port": 443,
    }
    assert "/etc/nginx/quintet-tls/shop/acme-authority.pem" not in files


@pytest.mark.parametrize(
    ("app", "said"),
    [
        ({"domains": ["a.test", "*.a.test"]}, "nginx_site_tls: '*.a.test' can get no certificate by acme"),
        ({"domains": ["192.0.2.7"]}, "nginx_site_tls: '192.0.2.7' can get no certificate by acme"),
        (
            {"nginx": {"tls_acme_staging": True, "tls_acme_directory": "https://a.test/"}},
            "nginx_site_tls_acme_staging: is true, and",
        ),
        ({"nginx": {"tls_acme_directory": "a.test"}}, "nginx_site_tls_acme_directory: 'a.test' is no directory"),
    ],
)
def test_what_acme_cannot_do_is_refused(app: dict[str, Any], said: str) -> None:
    given = {"name": "shop", "domains": ["shop.example"], "tls": "acme", **app}
    assert said in render("site_faults.j2", django_app=given)


def test_the_certificate_that_is_signed_here_is_for_all_names() -> None:
    names = {
        "nginx_site_domains": ["Shop.example", "*.shop.example", "192.0.2.7"],
        "nginx_site_aliases": ["[2001:db8::7]"],
    }
    role = Role("nginx", nginx_site_name="shop", **names)
    assert sorted(role.evaluate("__nginx_site_alternative_names")) == [
        "DNS:*.shop.example",
        "DNS:shop.example",
        "IP:192.0.2.7",
        "IP:2001:db8::7",
    ]


@pytest.mark.parametrize(
    ("renewal", "names", "good"),
    [(True, ["DNS:b", "DNS:a"], True), (False, ["DNS:a", "DNS:b"], False), (True, ["DNS:a"], False)],
)
def test_a_certificate_is_kept_while_it_is_for_the_names_and_not_near_its_end(
    renewal: bool, names: list[str], good: bool
) -> None:
    found = {"valid_at": {"renewal": renewal}, "subject_alt_name": names}
    role = Role("nginx", nginx_site_name="x", nginx_site_domains=["a", "b"], __nginx_self_signed_found=found)
    assert role.evaluate("__nginx_self_signed_is_good") is good
    role = Role(
        "nginx", nginx_site_name="x", nginx_site_domains=["a"], __nginx_self_signed_found={"msg": "No such file"}
    )
    assert role.evaluate("__nginx_self_signed_is_good") is False


@pytest.mark.parametrize(
    ("build", "facts", "lines"),
    [
        (BOOKWORM, {}, ["listen 443 ssl http2;"]),
        (BOOKWORM, IPV6, ["listen 443 ssl http2;", "listen [::]:443 ssl http2;"]),
        (TRIXIE, {}, ["listen 443 ssl;", "http2 on;", "listen 443 quic;"]),
        (
            TRIXIE,
            IPV6,
            ["listen 443 ssl;", "listen [::]:443 ssl;", "http2 on;", "listen 443 quic;", "listen [::]:443 quic;"],
        ),
        ({}, {}, ["listen 443 ssl http2;"]),
    ],
)
def test_http2_and_http3_are_as_the_build_has_them(
    build: dict[str, Any], facts: dict[str, Any], lines: list[str]
) -> None:
    text = render("listen_tls.conf.j2", __nginx_build=build, ansible_facts=facts, nginx_http3=True, default_server="")
    assert [line for line in text.splitlines() if not line.startswith("#")] == lines


def test_http3_must_be_asked_for() -> None:
    assert "quic" not in render("listen_tls.conf.j2", __nginx_build=TRIXIE, default_server="")
    assert "h3=" not in render("http.conf.j2", __nginx_build=TRIXIE)
    assert "h3=" not in render("http.conf.j2", __nginx_build=BOOKWORM, nginx_http3=True)
    assert """"on" 'h3=":443"; ma=3600';""" in render("http.conf.j2", __nginx_build=TRIXIE, nginx_http3=True)


def test_the_address_is_the_default_server_where_a_site_has_one() -> None:
    text = render("listen_tls.conf.j2", __nginx_build=TRIXIE, nginx_http3=True, default_server=" default_server")
    assert re.findall("^listen .*", text, re.M) == ["listen 443 ssl default_server;", "listen 443 quic default_server;"]


def test_unknown_names_are_refused_before_a_certificate_is_shown() -> None:
    for build in (BOOKWORM, TRIXIE):
        text = render("unknown_tls.conf.j2", __nginx_build=build, nginx_http3=True, ansible_facts=IPV6)
        assert "ssl_reject_handshake on;" in text
        assert "server_name ~.;" in text
        assert "default_server" not in text
        assert "backlog=4096" in text
    assert "listen 443 quic reuseport;" in text


@pytest.mark.parametrize("template", ["http.conf.j2", "unknown_tls.conf.j2"])
def test_workers_have_queues_of_their_own_by_choice(template: str) -> None:
    for chosen in (False, True):
        text = render(template, __nginx_build=TRIXIE, nginx_reuseport=chosen, ansible_facts=IPV6)
        listens = re.findall("^ *listen .*backlog=4096( reuseport)?;", text, re.M)
        assert listens == [" reuseport" if chosen else ""] * 2


def test_the_profiles_are_mozillas() -> None:
    new = render("tls.conf.j2", __nginx_build=TRIXIE, profile="intermediate")
    assert "ssl_protocols TLSv1.2 TLSv1.3;" in new
    (ciphers,) = re.findall("^ssl_ciphers (.*);", new, re.M)
    assert all(
        re.fullmatch("ECDHE-(ECDSA|RSA)-(AES(128|256)-GCM-SHA(256|384)|CHACHA20-POLY1305)", one)
        for one in ciphers.split(":")
    )
    assert len(ciphers.split(":")) == 6
    assert "ssl_ecdh_curve X25519MLKEM768:X25519:prime256v1:secp384r1;" in new
    assert "ssl_ecdh_curve X25519:prime256v1:secp384r1;" in render(
        "tls.conf.j2", __nginx_build=BOOKWORM, profile="intermediate"
    )
    for line in ("ssl_prefer_server_ciphers off;", "ssl_session_tickets off;"):
        assert line in new
    assert "stapling" not in new
    assert "dhparam" not in new
    modern = render("tls.conf.j2", __nginx_build=TRIXIE, profile="modern")
    assert "ssl_protocols TLSv1.3;" in modern
    assert "ssl_ciphers ECDHE-PSK-CHACHA20-POLY1305;" in modern, "Nginx ignores a second site's protocols"


def inner_site(**variables: Any) -> str:
    return site(tls="mutual", tls_clients=["edge1"], **variables)


def test_a_site_for_other_hosts_lets_in_named_ones_alone() -> None:
    text = inner_site(aliases=["www.shop.example"])
    assert text.count("ssl_verify_client on;") == text.count("ssl_certificate ") == 2
    assert 'map $ssl_client_s_dn $quintet_shop_stranger {\n    default 1;\n    "CN=edge1" 0;\n}' in text
    assert text.count("if ($quintet_shop_stranger) {\n        return 444;") == 2
    # It has no plain port, sends nobody there, and says nothing to browsers.
    assert "include quintet/listen.conf;" not in text
    assert "https://$host" not in text
    assert "Strict-Transport-Security" not in text
    assert "Alt-Svc" not in text


def test_the_edge_asks_other_hosts_by_mutual_tls_and_verifies_them() -> None:
    servers = [{"server": "10.0.0.11:443"}, {"server": "10.0.0.12:443"}]
    text = site(http_servers=servers, websocket_servers=servers, servers_tls=True)
    assert text.count("proxy_pass https://") == 3
    assert "proxy_pass http://" not in text
    assert {"proxy_ssl_verify on;", "proxy_ssl_name shop.example;", "proxy_ssl_server_name on;"} <= {
        line.strip() for line in text.splitlines()
    }
    # Files of other hosts count as files all the same.
    assert '"~^[^:]*:/static/" file;' in text
    assert '"~^[^:]*:/static/" file;' not in site()


def test_a_gate_is_read_by_each_server_block_of_an_inner_site_alone() -> None:
    text = inner_site(aliases=["www.shop.example"], gate="/run/quintet/shop/gate.conf")
    assert text.count("    include /run/quintet/shop/gate.conf*;\n") == 2
    assert "gate.conf" not in site(gate="/run/quintet/shop/gate.conf")
    assert "gate" not in inner_site()


def test_a_host_may_ask_the_edge_for_itself_and_for_no_other() -> None:
    servers = [{"server": "10.0.0.11:443", "down": True}, {"server": "[fd00::12]:443"}]
    probes = {"10.0.0.11": "10.0.0.11:443", "fd00::12": "[fd00::12]:443"}
    text = site(http_servers=servers, websocket_servers=servers, servers_tls=True, probe_servers=probes)
    # Also while it is down for others.
    assert "upstream shop-probe-1 { server 10.0.0.11:443; }" in text
    for kind in ("http", "reserved", "websocket"):
        assert f'map "$remote_addr:$http_x_quintet_probe" $quintet_shop_{kind} {{\n    default shop-{kind};\n' in text
        assert f"proxy_pass https://$quintet_shop_{kind};" in text
    assert text.count('    "fd00::12:own" shop-probe-2;\n') == 3
    assert "probe" not in site(http_servers=servers, websocket_servers=servers)


def test_a_site_without_tls_answers_the_edge_alone() -> None:
    given = {
        "nginx_site_name": "shop",
        "nginx_site_domains": ["shop.example"],
        "nginx_site_aliases": ["www.shop.example"],
        "nginx_site_http_servers": [{"server": SERVER}],
        "nginx_site_proxies_only": True,
    }
    assert "would answer nobody" in render("site_faults.j2", **given)
    known = {**given, "nginx_trusted_proxies": ["10.0.0.1"]}
    assert render("site_faults.j2", **known).strip() == ""
    text = render("site.conf.j2", **known)
    # Of what connects, not of whom it speaks for.
    assert (
        text.count("if ($quintet_trusted = 0) {\n        return 444;")
        == text.count("include quintet/listen.conf;")
        == 2
    )
    assert "geo $realip_remote_addr $quintet_trusted {\n    default 0;\n    10.0.0.1 1;\n}" in render(
        "http.conf.j2", **known
    )
    assert "ssl_" not in text
    assert "if ($quintet_shop_unheard) {" in text
    assert "quintet_trusted" not in site()


def test_an_edge_without_tls_counts_files_as_files() -> None:
    servers = [{"server": "10.0.0.11:80"}, {"server": "10.0.0.12:80"}]
    text = site(http_servers=servers, servers_have_files=True)
    assert '"~^[^:]*:/static/" file;' in text
    assert "proxy_pass https://" not in text
    assert "proxy_ssl" not in text


def test_where_no_app_had_the_request_the_edge_gets_no_answer() -> None:
    # It then asks another host; an answer, a 502 of the app's own too, it passes on.
    text = block(inner_site(), "location @quintet_502")
    assert text.index("$quintet_shop_busy") < text.index("if ($quintet_shop_unheard) {\n            return 444;")
    assert 'map $upstream_connect_time $quintet_shop_unheard {\n    default 1;\n    "~[0-9]" 0;\n}' in inner_site()
    # Clients of an edge get its page.
    assert "unheard" not in site()
    assert "proxy_next_upstream error timeout;" in render("http.conf.j2")


SERVERS = [{"server": "10.0.0.11:443"}, {"server": "10.0.0.12:443"}]


@pytest.mark.parametrize(
    ("sticky", "key"),
    [("address", "$remote_addr"), ("cookie sessionid", "$cookie_sessionid"), ("header X-User-Id", "$http_x_user_id")],
)
def test_clients_stay_where_they_were_by_choice(sticky: str, key: str) -> None:
    text = site(http_servers=SERVERS, websocket_servers=SERVERS, sticky=sticky)
    assert f'map {key} $quintet_shop_sticky {{\n    default {key};\n    "" $remote_addr;\n}}' in text
    for upstream in ("shop-http", "shop-websocket", "shop-reserved"):
        lines = [line.strip() for line in block(text, f"upstream {upstream}").splitlines()]
        assert "hash $quintet_shop_sticky consistent;" in lines
        assert "least_conn;" not in lines
    # One server is always the same.
    assert "hash" not in block(site(sticky=sticky), "upstream shop-http")


def test_without_it_sockets_go_where_fewest_are() -> None:
    text = site(http_servers=SERVERS, websocket_servers=SERVERS)
    assert "least_conn;" in block(text, "upstream shop-websocket")
    assert "sticky" not in text


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({"sticky": "cookie"}, "'cookie' tells no clients apart"),
        ({"sticky": "cookie a;b"}, "'cookie a;b' tells no clients apart"),
        ({"sticky": "ip"}, "'ip' tells no clients apart"),
        ({"sticky": "address", "http_balance": "ip_hash"}, "takes the place of nginx_site_http_balance"),
        ({"sticky": "address", "websocket_balance": "round_robin"}, "takes the place of nginx_site_http_balance"),
    ],
)
def test_an_impossible_stickiness_is_refused(given: dict[str, str], fault: str) -> None:
    app = {"name": "shop", "domains": ["shop.example"], "nginx": given}
    assert fault in render("site_faults.j2", django_app=app)


@pytest.mark.parametrize(
    ("domain", "name"),
    [("shop.example", "shop.example"), ("*.shop.example", "edge.shop.example"), ("[fd00::1]", "fd00::1")],
)
def test_the_edge_asks_for_a_name_that_the_site_has(domain: str, name: str) -> None:
    text = site(domains=[domain], http_servers=[{"server": "10.0.0.11:443"}], servers_tls=True)
    assert f"proxy_ssl_name {name};" in text


@pytest.mark.parametrize(
    ("clients", "fault"),
    [([], "has mutual TLS, and nobody who may ask"), (['edge"; }'], "cannot be the name in a host's certificate")],
)
def test_a_site_for_nobody_is_refused(clients: list[str], fault: str) -> None:
    given = {
        "nginx_site_name": "shop",
        "nginx_site_domains": ["shop.example"],
        "nginx_site_http_servers": [{"server": SERVER}],
    }
    told = render("site_faults.j2", **given, nginx_site_tls="mutual", nginx_site_tls_clients=clients)
    assert fault in told


def test_what_counts_a_request_leaves_captures_of_locations_alone() -> None:
    # Nginx has one set of $1 … for a request: that of the last expression. Each of these is worked out once.
    text = site(limit_strict_paths=["/login/"], extra="location ~ ^/al/(.*)$ {\n    alias /srv/al/$1;\n}")
    worked_out = text.index("set $quintet_counted ")
    # A closed site's page is counted as nothing, so not before.
    assert text.index("return 503;") < worked_out
    line = text[worked_out:].partition("\n")[0]
    keys = re.findall(r"^limit_(?:req|conn)_zone (\S+)", text, re.M)
    assert len(keys) == len(set(keys)) + 1, "requests are counted twice: by rate and by number"
    assert all(key in line for key in keys)


def test_a_limit_may_have_no_burst() -> None:
    # Nginx: invalid burst value "burst=0".
    text = site(
        limit_requests_burst=0,
        limit_handshakes_burst=0,
        limit_strict_burst=0,
        limit_strict_paths=["/login/"],
        websocket_servers=[{"server": "unix:/run/shop/daphne.sock"}],
    )
    assert re.findall(r"^ *limit_req (.*);$", text, re.M) == [
        "zone=shop-requests",
        "zone=shop-handshakes",
        "zone=shop-strict",
    ]


def test_keys_are_made_in_directories_that_are_closed_already() -> None:
    # The module gives a new key the mode that its umask says, and 0600 only then.
    tasks = load("tasks/site_self_signed.yml")
    kinds = [(task, name) for task in tasks for name in task if name.endswith((".write_files", ".openssl_privatekey"))]
    closed: set[str] = set()
    made = []
    for task, kind in kinds:
        if kind.endswith(".write_files"):
            closed |= {one["path"] for one in task[kind]["directories"] if one.get("mode") == "0700"}
        else:
            made.append(task[kind]["path"])
            assert task[kind]["path"].rpartition("/")[0] in closed
    assert len(made) == 2


def test_a_site_that_is_gone_leaves_nothing_of_its_own() -> None:
    role = Role("nginx", nginx_site_name="shop")
    leftovers = role.evaluate("__nginx_site_leftovers")
    assert role.evaluate("__nginx_tls_directory") + "/shop" in leftovers
    # A site that comes back under the name would be closed.
    assert role.evaluate("__nginx_maintenance_file") in leftovers
    state = acme.Layout().state
    known = [state / "live/shop", state / "archive/shop", state / "renewal/shop.conf", state / "shop.asked"]
    assert {str(path) for path in known} <= set(leftovers)
    *_, tree, gone = load("tasks/site_configure.yml")
    assert "quintet.django.nginx_tree" in tree
    assert gone["loop"] == "{{ __nginx_site_leftovers }}"
    assert gone["when"] == "nginx_site_state == 'absent'"


def test_the_host_asks_by_itself_where_the_first_certificate_does_not_come() -> None:
    timer, issue = load("tasks/site_acme.yml")
    assert timer["ansible.builtin.systemd_service"]["name"] == "quintet-acme.timer"
    assert "issue" in issue["ansible.builtin.command"]["argv"]


# ---- paths that go to certain servers alone -------------------------------------------------------------------------

PINNED = {"/media/": ["10.0.0.11:443"], "/upload/": ["10.0.0.11:443"]}


def test_pinned_paths_go_to_their_servers_alone() -> None:
    text = site(pinned_paths=PINNED, servers_tls=True, websocket_servers=[{"server": "10.0.0.12:443"}])
    assert blocks(text, "upstream .*")[2:] == ["upstream shop-pinned-1", "upstream shop-websocket"]
    assert re.findall("server (.*);", block(text, "upstream shop-pinned-1")) == ["10.0.0.11:443 max_conns=256"]
    for path in PINNED:
        location = block(text, f"location ^~ {path}")
        assert "proxy_pass https://shop-pinned-1;" in location
        assert "include quintet/proxy.conf;" in location
        assert "proxy_request_buffering on;" in location
        # All else it has of the site: its limits, headers, sizes and times.
        assert not re.search("limit_|add_header|client_max_body_size|timeout", location)
    assert "proxy_pass https://shop-http;" in block(text, "location /")


def test_each_list_of_servers_is_one_upstream() -> None:
    others = {"/upload/other/": ["10.0.0.12:443", "10.0.0.13:443"]}
    # The longest path decides, as Nginx chooses its location, in whatever order they are written.
    for paths in ({**PINNED, **others}, {**others, **PINNED}):
        location = block(site(pinned_paths=paths), "location ^~ /upload/other/")
        (upstream,) = re.findall("proxy_pass http://(.*);", location)
        assert "10.0.0.12:443" in block(site(pinned_paths=paths), f"upstream {upstream}")
    text = site(pinned_paths={**PINNED, **others}, http_max_conns=0)
    assert [name for name in blocks(text, "upstream .*") if "pinned" in name] == [
        "upstream shop-pinned-1",
        "upstream shop-pinned-2",
    ]
    assert re.findall("server (.*);", block(text, "upstream shop-pinned-2")) == ["10.0.0.12:443", "10.0.0.13:443"]
    assert "pinned" not in site()


def test_a_streamed_path_may_be_pinned_or_lie_in_a_pinned_one() -> None:
    paths = {"/upload/": ["10.0.0.11:443"], "/big/files/": ["10.0.0.12:443"]}
    text = site(pinned_paths=paths, streamed_paths=["/upload/", "/upload/film/", "/big/", "/stream/"])
    for path, upstream in (
        ("/upload/", "pinned-1"),
        ("/upload/film/", "pinned-1"),
        ("/big/", "http"),
        ("/stream/", "http"),
    ):
        assert f"proxy_pass http://shop-{upstream};" in block(text, f"location {path}")
    # Never twice, which Nginx refuses.
    assert blocks(text, r"location \^~ .*") == ["location ^~ /quintet-errors/", "location ^~ /big/files/"]
    assert "proxy_request_buffering off;" in block(text, "location ^~ /big/files/")


def test_pinned_files_are_counted_as_files_and_full_servers_as_busy() -> None:
    text = site(pinned_paths=PINNED)
    assert '"~^[^:]*:/media/" file;' in block(text, 'map "$quintet_upgrade:$uri" $quintet_shop_kind')
    assert "/upload/" not in block(text, 'map "$quintet_upgrade:$uri" $quintet_shop_kind')
    busy = re.search('"~(.*)" 1;', block(text, "map $upstream_addr $quintet_shop_busy"))
    assert busy
    for name, is_busy in (("shop-pinned-1", True), ("shop-http", True), ("10.0.0.11:443", False)):
        assert bool(re.search(busy[1], name)) is is_busy


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pinned_paths": {"/": ["a:1"]}}, "nginx_site_pinned_paths: '/' is no path below /."),
        ({"pinned_paths": {"/x{": ["a:1"]}}, "nginx_site_pinned_paths: '/x{' is no path below /."),
        ({"pinned_paths": {"/x/": []}}, "nginx_site_pinned_paths: the servers of '/x/' are none."),
        ({"pinned_paths": {"/x/": "a:1"}}, "nginx_site_pinned_paths: the servers of '/x/' are none."),
        ({"pinned_paths": {"/x/": ["a:1;"]}}, "nginx_site_pinned_paths: the servers of '/x/' are none."),
        (
            {"pinned_paths": {"/ws/up/": ["a:1"]}, "websocket_servers": [{"server": "a:1"}]},
            "nginx_site_pinned_paths: '/ws/up/' is for WebSockets ('/ws/')",
        ),
        (
            {"pinned_paths": {"/media/": ["a:1"]}, "media_root": "/srv/media"},
            "nginx_site_pinned_paths: '/media/' is for files that are served from here ('/media/')",
        ),
    ],
)
def test_paths_that_cannot_be_pinned_are_refused(settings: dict[str, Any], said: str) -> None:
    given = {f"nginx_site_{name}": value for name, value in settings.items()}
    plain = {"nginx_site_name": "shop", "nginx_site_domains": ["shop.example"]}
    told = render("site_faults.j2", **plain, nginx_site_http_servers=[{"server": SERVER}], **given)
    assert said in told


def test_nothing_is_served_from_here_of_an_app_with_object_storage() -> None:
    assert "location ^~ /media/" in app_site()
    assert "location ^~ /media/" in app_site(shared_files={"kind": "mount"})
    assert "/media/" not in app_site(shared_files={"kind": "object_storage"}, shared=[])
