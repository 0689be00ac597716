"""The module nginx_tree, with an Nginx that only pretends."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def load_module() -> ModuleType:
    path = Path(__file__).parents[2] / "plugins/modules/nginx_tree.py"
    spec = importlib.util.spec_from_file_location("nginx_tree", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["nginx_tree"] = module
    spec.loader.exec_module(module)
    return module


nginx_tree = load_module()
HOST = {"nginx.conf": "http { include quintet/sites/*.conf; }\n", "http.conf": "# host\n"}
SHOP = {"sites/shop.conf": "server {\n    server_name shop.example;\n}\n"}


@dataclasses.dataclass
class FakeNginx:
    """Refuses files that say 'broken', and reloads as it is told to."""

    layout: Any
    is_installed: bool = True
    is_running: bool = True
    tree: int | None = None
    generation: int = 0
    reloads: int = 0
    tested: list[Path] = dataclasses.field(default_factory=list)
    log_at_reload: str = ""
    deaf: bool = False

    def installed(self) -> bool:
        return self.is_installed

    def test(self, main: Path) -> tuple[bool, str]:
        self.tested.append(main)
        tree = main.parent / "quintet"
        assert "include quintet/nginx.conf;" in main.read_text()
        for path in sorted(tree.rglob("*.conf")):
            for number, line in enumerate(path.read_text().splitlines(), 1):
                if "broken" in line:
                    return False, f'nginx: [emerg] unknown directive "broken" in {path}:{number}\n'
        names = [name for path in tree.rglob("*.conf") for name in nginx_tree.server_names(path.read_text())]
        twice = {name for name in names if names.count(name) > 1}
        return True, "".join(
            f'nginx: [warn] conflicting server name "{name}" on 0.0.0.0:80, ignored\n' for name in twice
        )

    def running(self) -> bool:
        return self.is_running

    def loaded(self) -> set[int]:
        return {self.tree} if self.is_running and self.tree is not None else set()

    def workers(self) -> set[int]:
        return {1000 + self.generation}

    def reload(self) -> None:
        self.reloads += 1
        if self.log_at_reload:
            with self.layout.error_log.open("a") as log:
                log.write(self.log_at_reload)
        elif not self.deaf:
            self.generation += 1
            self.tree = nginx_tree.live_number(self.layout)
            if self.tree is not None:
                self.layout.marker(self.tree).touch()


@pytest.fixture
def layout(tmp_path: Path) -> Any:
    for name in ("etc", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "etc/nginx.conf").write_text("# Debian's\n")
    (tmp_path / "error.log").write_text("2026/11/23 20:00:00 [emerg] 1#1: an old story\n")
    return nginx_tree.Layout(etc=tmp_path / "etc", run=tmp_path / "run", error_log=tmp_path / "error.log")


@pytest.fixture
def server(layout: Any) -> FakeNginx:
    return FakeNginx(layout)


def apply(
    server: FakeNginx, files: dict[str, str] | None = None, absent: list[str] | None = None, check: bool = False
) -> Any:
    if not check:
        with nginx_tree.locked(server.layout):
            return nginx_tree.apply_changes(server.layout, server, files or {}, absent or [], check)
    return nginx_tree.apply_changes(server.layout, server, files or {}, absent or [], check)


def everything(root: Path) -> dict[str, str]:
    """All that is on disk, links as links."""
    return {
        str(path.relative_to(root)): str(path.readlink()) if path.is_symlink() else path.read_text()
        for path in sorted(root.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def test_brings_a_tree_and_a_stub_and_loads_them(layout: Any, server: FakeNginx) -> None:
    outcome = apply(server, HOST)
    assert outcome.changed
    assert outcome.reloaded
    assert layout.link.readlink() == Path("quintet-trees/1")
    assert (layout.link / "http.conf").read_text() == "# host\n"
    assert layout.main.read_text() == nginx_tree.STUB
    assert f"error_log {layout.marker(1)} emerg;" in (layout.link / "tree.conf").read_text()
    assert server.reloads == 1
    assert [entry["after_header"] for entry in outcome.diff] == [
        f"{layout.link}/http.conf",
        f"{layout.link}/nginx.conf",
        str(layout.main),
    ]


def test_the_same_again_changes_nothing(layout: Any, server: FakeNginx) -> None:
    apply(server, HOST)
    before = everything(layout.etc)
    outcome = apply(server, HOST)
    assert not outcome.changed
    assert not outcome.diff
    assert server.reloads == 1
    assert len(server.tested) == 1
    assert everything(layout.etc) == before


def test_a_site_joins_what_is_there_and_leaves_again(layout: Any, server: FakeNginx) -> None:
    apply(server, HOST)
    apply(server, SHOP)
    assert nginx_tree.read_tree(layout.link) == {**HOST, **SHOP}
    assert apply(server, absent=["sites/shop.conf"]).changed_paths == [f"{layout.link}/sites/shop.conf"]
    assert nginx_tree.read_tree(layout.link) == HOST
    assert not apply(server, absent=["sites/shop.conf"]).changed


def test_a_refused_tree_leaves_everything_as_it_was(layout: Any, server: FakeNginx) -> None:
    apply(server, {**HOST, **SHOP})
    before = everything(layout.etc), everything(layout.run)
    with pytest.raises(nginx_tree.TreeError) as caught:
        apply(server, {"sites/chat.conf": "server {\n    broken;\n}\n"})
    assert (everything(layout.etc), everything(layout.run)) == before
    assert server.reloads == 1
    assert 'unknown directive "broken" in quintet/sites/chat.conf:2' in str(caught.value)
    assert "   2 |     broken;" in str(caught.value)
    assert str(layout.trees) not in str(caught.value)


def test_two_sites_cannot_have_one_name(layout: Any, server: FakeNginx) -> None:
    apply(server, {**HOST, **SHOP})
    before = everything(layout.etc)
    with pytest.raises(
        nginx_tree.TreeError, match=r"'shop.example' is claimed twice .* quintet/sites/shop.conf"
    ) as caught:
        apply(server, {"sites/chat.conf": "server { \n server_name chat.example\n shop.example; }\n"})
    assert "quintet/sites/chat.conf" in str(caught.value)
    assert everything(layout.etc) == before


def test_a_run_killed_before_its_reload_is_healed(layout: Any, server: FakeNginx) -> None:
    apply(server, HOST)
    stage = layout.trees / ".stage/quintet"
    stage.mkdir(parents=True)
    (layout.trees / "2").mkdir()
    for path, content in {**HOST, **SHOP}.items():
        nginx_tree.write_file(layout.trees / "2" / path, content)
    nginx_tree.point_link(layout, 2)
    assert apply(server, SHOP, check=True).changed
    outcome = apply(server, SHOP)
    assert outcome.changed
    assert outcome.msg
    assert server.loaded() == {nginx_tree.live_number(layout)} == {3}
    assert not (layout.trees / ".stage").exists()
    assert not apply(server, SHOP).changed


def test_edits_by_hand_are_taken_back(layout: Any, server: FakeNginx) -> None:
    apply(server, {**HOST, **SHOP})
    (layout.link / "sites/shop.conf").write_text("# by hand\n")
    layout.main.write_text("# by hand\n")
    assert apply(server, SHOP, check=True).changed_paths == [f"{layout.link}/sites/shop.conf", str(layout.main)]
    apply(server, SHOP)
    assert nginx_tree.read_tree(layout.link) == {**HOST, **SHOP}
    assert layout.main.read_text() == nginx_tree.STUB
    assert server.reloads == 2


def test_a_file_removed_by_hand_comes_back(layout: Any, server: FakeNginx) -> None:
    apply(server, {**HOST, **SHOP})
    (layout.link / "sites/shop.conf").unlink()
    assert apply(server, SHOP).changed
    assert nginx_tree.read_tree(layout.link) == {**HOST, **SHOP}


def test_a_failed_reload_puts_the_old_tree_back(layout: Any, server: FakeNginx) -> None:
    apply(server, HOST)
    before = everything(layout.etc)
    taken = "2026/11/23 20:00:01 [emerg] 9#9: bind() to 0.0.0.0:81 failed (98: Address already in use)\n"
    server.log_at_reload = taken * 5 + "2026/11/23 20:00:03 [emerg] 9#9: still could not bind()\n"
    with pytest.raises(nginx_tree.TreeError) as caught:
        apply(server, SHOP)
    assert everything(layout.etc) == before
    assert str(caught.value).count("bind() to 0.0.0.0:81 failed") == 1
    assert "an old story" not in str(caught.value)
    assert server.reloads == 2, "Nginx has given up by itself; another reload would cost connections"


def test_a_failed_first_reload_puts_the_main_file_back(layout: Any, server: FakeNginx) -> None:
    server.log_at_reload = "2026/11/23 20:00:01 [emerg] 9#9: still could not bind()\n"
    with pytest.raises(nginx_tree.TreeError):
        apply(server, HOST)
    assert everything(layout.etc) == {"nginx.conf": "# Debian's\n"}


def test_a_reload_without_an_answer_is_taken_back_by_another(
    layout: Any, server: FakeNginx, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(server, HOST)
    server.deaf = True
    answer = nginx_tree.reload_and_wait
    monkeypatch.setattr(nginx_tree, "reload_and_wait", lambda *arguments: answer(*arguments, seconds=0.2))
    with pytest.raises(nginx_tree.TreeError, match="No new worker"):
        apply(server, SHOP)
    assert nginx_tree.live_number(layout) == 1
    assert server.reloads == 3


def test_retries_of_a_busy_port_are_waited_for(layout: Any, server: FakeNginx) -> None:
    server.log_at_reload = "2026/11/23 [emerg] 9#9: bind() to 0.0.0.0:81 failed (98: Address already in use)\n"
    failure = nginx_tree.reload_and_wait(server, layout, 1, seconds=0.2)
    assert not failure.final


def test_a_stopped_server_is_not_reloaded(layout: Any, server: FakeNginx) -> None:
    server.is_running = False
    outcome = apply(server, HOST)
    assert outcome.changed
    assert not outcome.reloaded
    assert server.reloads == 0
    server.is_running, server.tree = True, 1
    assert not apply(server, HOST).changed, "started since, with the live tree"


def test_only_the_live_and_the_previous_tree_stay(layout: Any, server: FakeNginx) -> None:
    for number in range(5):
        apply(server, {**HOST, "http.conf": f"# {number}\n"})
    assert nginx_tree.numbers(layout) == {4, 5}
    assert [path.name for path in layout.run.iterdir()] == ["nginx-tree-5.log"]


def test_check_mode_tests_and_leaves_alone(layout: Any, server: FakeNginx) -> None:
    before = everything(layout.etc)
    assert apply(server, HOST, check=True).changed
    assert server.tested
    with pytest.raises(nginx_tree.TreeError, match="broken"):
        apply(server, {**HOST, "http.conf": "broken;\n"}, check=True)
    assert everything(layout.etc) == before
    assert not list(layout.run.iterdir())
    assert server.reloads == 0


def test_check_mode_on_a_bare_host(tmp_path: Path) -> None:
    layout = nginx_tree.Layout(etc=tmp_path / "etc", run=tmp_path / "run", error_log=tmp_path / "log")
    server = FakeNginx(layout, is_installed=False, is_running=False)
    assert apply(server, HOST, check=True).changed
    assert apply(server, SHOP, check=True).changed
    assert not apply(server, absent=["sites/shop.conf"], check=True).changed
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("installed", "what"), [(False, "Nginx is not installed"), (True, "nginx.conf is missing")])
def test_a_site_without_the_host_says_what_is_missing(
    layout: Any, server: FakeNginx, installed: bool, what: str
) -> None:
    server.is_installed = installed
    with pytest.raises(nginx_tree.TreeError, match=what):
        apply(server, SHOP)


@pytest.mark.parametrize("path", ["", "/etc/passwd", "../x.conf", "sites/../../x", "sites//x.conf", "./x", "tree.conf"])
def test_paths_stay_in_the_tree(server: FakeNginx, path: str) -> None:
    with pytest.raises(nginx_tree.TreeError, match="no path of a file"):
        apply(server, {**HOST, path: ""})


def test_a_directory_in_the_links_place_is_not_touched(layout: Any, server: FakeNginx) -> None:
    layout.link.mkdir()
    with pytest.raises(nginx_tree.TreeError, match="is not a link"):
        apply(server, HOST)


def test_a_second_run_waits_and_then_says_so(layout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nginx_tree, "LOCK_SECONDS", 0.3)
    with nginx_tree.locked(layout), pytest.raises(nginx_tree.TreeError, match="Another run"), nginx_tree.locked(layout):
        pass


COMPANION = nginx_tree.Companion("servers/unknown.conf", "# unknown\n", ["listen_tls.conf"])
SECURE = {"sites/shop.conf": "server {\n    include quintet/listen_tls.conf;\n}\n"}


def with_companion(server: FakeNginx, files: dict[str, str], absent: list[str] | None = None, **more: Any) -> Any:
    with nginx_tree.locked(server.layout):
        return nginx_tree.apply_changes(server.layout, server, files, absent or [], False, [COMPANION], **more)


def test_a_companion_is_there_as_long_as_what_it_belongs_to(layout: Any, server: FakeNginx) -> None:
    with_companion(server, {**HOST, **SHOP})
    path = layout.link / COMPANION.path
    assert not path.exists()
    assert with_companion(server, SECURE).changed_paths[:2] == [
        f"{layout.link}/{COMPANION.path}",
        f"{layout.link}/sites/shop.conf",
    ]
    assert path.read_text() == COMPANION.content
    assert not with_companion(server, {}).changed
    with_companion(server, {"sites/chat.conf": SECURE["sites/shop.conf"]})
    with_companion(server, SHOP)
    assert path.exists(), "the other site still has TLS"
    with_companion(server, {}, ["sites/chat.conf"])
    assert not path.exists()


def certificate(layout: Any, name: str) -> tuple[Path, dict[str, str]]:
    """Make a site's certificate, and return it with the site's file that names it."""
    directory = layout.certificates / "shop" / (name * 16)
    directory.mkdir(parents=True)
    (directory / "key.pem").touch()
    return directory, {"sites/shop.conf": f"ssl_certificate_key {directory}/key.pem;\n"}


def test_a_certificate_goes_with_the_last_tree_that_names_it(layout: Any, server: FakeNginx) -> None:
    (a, first), (b, second), (c, third) = (certificate(layout, name) for name in "abc")
    for site, there in ((first, (a, b, c)), (second, (a, b, c)), (third, (b, c))):
        apply(server, {**HOST, **site})
        assert [one for one in (a, b, c) if one.exists()] == list(there), (
            "the live tree, the one before, and what is to come"
        )


def test_a_certificate_stays_while_other_files_change(layout: Any, server: FakeNginx) -> None:
    a, first = certificate(layout, "a")
    for number in range(4):
        apply(server, {**HOST, **first, "http.conf": f"# {number}\n"})
    assert (a / "key.pem").exists()


def test_a_certificate_that_nginx_refuses_takes_none_along(layout: Any, server: FakeNginx) -> None:
    a, first = certificate(layout, "a")
    apply(server, {**HOST, **first})
    with pytest.raises(nginx_tree.TreeError):
        apply(server, {"sites/shop.conf": "broken"})
    server.log_at_reload = "2026/11/23 21:00:00 [emerg] 1#1: bind() to 0.0.0.0:443 failed (13: Permission denied)\n"
    with pytest.raises(nginx_tree.TreeError, match="did not take"):
        apply(server, SHOP)
    assert (a / "key.pem").exists()


def test_in_check_mode_the_test_may_be_left_out(layout: Any, server: FakeNginx) -> None:
    apply(server, {**HOST, **SHOP})
    server.tested.clear()
    broken = {"sites/shop.conf": "broken"}
    assert nginx_tree.apply_changes(layout, server, broken, [], True, test=False).changed
    assert server.tested == []
    with nginx_tree.locked(layout), pytest.raises(nginx_tree.TreeError):
        nginx_tree.apply_changes(layout, server, broken, [], False, test=False)
