"""The pool of static files: what it takes in, what it never loses, what it drops."""

import os
from datetime import timedelta
from pathlib import Path

import pytest
from host_support import A, B, C, D, Machine, machine
from quintet_host import pool
from quintet_host.files import replace_link
from quintet_host.generation import load
from quintet_host.state import AppState, Unconfirmed

CONTENT = {
    A: {"app.aaa.css": "a" * 100, "logo.png": "l" * 10, "plain.css": "of A"},
    B: {"app.bbb.css": "b" * 100, "logo.png": "l" * 10, "plain.css": "of B"},
    C: {"app.ccc.css": "c" * 100, "logo.png": "l" * 10},
    D: {"app.ddd.css": "d" * 100, "logo.png": "l" * 10},
}


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    """A host with four good generations; none has served yet."""
    found = machine(tmp_path)
    for identifier, files in CONTENT.items():
        static = found.add(identifier, "good") / "static"
        for name, content in files.items():
            (static / "site").mkdir(exist_ok=True)
            (static / "site" / name).write_text(content)
    return found


def serve(here: Machine, identifier: str, days: float = 0) -> None:
    """Switch as the host command does, so many days after what came before."""
    before = here.current
    here.clock.sleep(timedelta(days=days).total_seconds())
    pool.add(here.host, load(here.layout, "shop", identifier))
    replace_link(here.layout.current("shop"), f"generations/{identifier}")
    pool.left(here.host, "shop", before, here.clock.now())
    here.host.store("shop").write(AppState(previous=before))


def pooled(here: Machine) -> set[str]:
    directory = here.layout.app("shop") / "static-pool/site"
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


def content(here: Machine, name: str) -> str:
    return (here.layout.app("shop") / "static-pool/site" / name).read_text()


def test_files_are_links_that_nginx_can_read_and_outlive_their_generation(here: Machine) -> None:
    old = os.umask(0o077)
    try:
        serve(here, A)
    finally:
        os.umask(old)
    pooled_file = here.layout.app("shop") / "static-pool/site/app.aaa.css"
    assert pooled_file.samefile(here.layout.generation("shop", A) / "static/site/app.aaa.css")
    assert [oct(path.stat().st_mode & 0o777) for path in pooled_file.parents[:2]] == ["0o755"] * 2
    (here.layout.generation("shop", A) / "static/site/app.aaa.css").unlink()
    assert content(here, "app.aaa.css") == "a" * 100


def test_the_newest_generation_s_file_takes_a_name_and_doing_it_twice_changes_nothing(here: Machine) -> None:
    serve(here, A)
    serve(here, B)
    assert content(here, "plain.css") == "of B"
    assert pooled(here) == {"app.aaa.css", "app.bbb.css", "logo.png", "plain.css"}
    serve(here, A)
    serve(here, A)
    assert content(here, "plain.css") == "of A"
    assert (here.layout.app("shop") / "static-pool/site/plain.css").stat().st_nlink == 2


def test_a_file_where_another_generation_has_a_directory_and_back(here: Machine) -> None:
    static = here.layout.generation("shop", B) / "static"
    (static / "site/plain.css").unlink()
    (static / "site/plain.css").mkdir()
    (static / "site/plain.css/index.css").write_text("deep")
    serve(here, A)
    serve(here, B)
    assert content(here, "plain.css/index.css") == "deep"
    serve(here, A)
    assert content(here, "plain.css") == "of A"


def test_hidden_files_and_links_stay_out(here: Machine, tmp_path: Path) -> None:
    static = here.layout.generation("shop", A) / "static"
    (static / ".secret").touch()
    (static / ".git").mkdir()
    (static / ".git/config").touch()
    (static / "link").symlink_to("/etc/passwd")
    serve(here, A)
    assert [path.name for path in (here.layout.app("shop") / "static-pool").iterdir()] == ["site"]


def test_an_app_without_static_files_gets_no_pool(tmp_path: Path) -> None:
    here = machine(tmp_path)
    here.add(A)
    pool.add(here.host, load(here.layout, "shop", A))
    assert pool.prune(here.host, "shop") == []
    assert not (here.layout.app("shop") / "static-pool").exists()


def test_age_counts_from_when_a_generation_stopped_serving(here: Machine) -> None:
    serve(here, A)
    serve(here, B, days=100)  # so long A served
    serve(here, C, days=1)
    here.clock.sleep(timedelta(days=28).total_seconds())
    assert pool.prune(here.host, "shop", days=30) == [], "A stopped serving 29 days ago"
    here.clock.sleep(timedelta(days=2).total_seconds())
    assert pool.prune(here.host, "shop", days=30) == ["site/app.aaa.css"]
    assert pooled(here) == {"app.bbb.css", "app.ccc.css", "logo.png", "plain.css"}
    assert pool.prune(here.host, "shop", days=30) == []


def test_what_current_and_previous_have_stays_however_old(here: Machine) -> None:
    serve(here, A)
    serve(here, B)
    here.clock.sleep(timedelta(days=1000).total_seconds())
    assert pool.prune(here.host, "shop", days=0, max_bytes=0) == []
    (here.layout.state("shop") / "pool.json").unlink()
    assert pool.prune(here.host, "shop", days=0, max_bytes=0) == [], "their own directories say what they have"


def test_an_unconfirmed_switch_keeps_both_sides(here: Machine) -> None:
    serve(here, A)
    serve(here, B)
    serve(here, C)
    here.host.store("shop").write(AppState("x", None, Unconfirmed(C, A, "", None, None)))
    assert pool.prune(here.host, "shop", days=0, max_bytes=0) == ["site/app.bbb.css"]


def test_size_drops_the_oldest_first(here: Machine) -> None:
    for identifier in (A, B, C, D):
        serve(here, identifier, days=1)
    assert pool.prune(here.host, "shop", max_bytes=205) == [], "app.aaa, app.bbb and plain: 204 bytes; logo is D's"
    assert pool.prune(here.host, "shop", max_bytes=203) == ["site/app.aaa.css"]
    assert pool.prune(here.host, "shop", max_bytes=0) == ["site/app.bbb.css", "site/plain.css"]


def test_limits_are_the_app_s_settings(here: Machine) -> None:
    for identifier in (A, B, C, D):
        serve(here, identifier, days=1)
    here.layout.settings("shop").write_text('{"static_pool": {"days": 30, "max_bytes": 0}}')
    assert pool.prune(here.host, "shop") == ["site/app.aaa.css", "site/app.bbb.css", "site/plain.css"]


def test_a_candidate_that_never_came_to_serve_ages_too(here: Machine) -> None:
    serve(here, A)
    pool.add(here.host, load(here.layout, "shop", B))
    here.clock.sleep(timedelta(days=31).total_seconds())
    assert pool.prune(here.host, "shop") == ["site/app.bbb.css"]


def test_a_file_of_several_generations_is_listed_for_the_newest_and_lives_as_long(here: Machine) -> None:
    for identifier in (A, B, C, D):
        serve(here, identifier, days=1)
        pool.prune(here.host, "shop")
    listed = (here.layout.state("shop") / "pool.json").read_text()
    assert (listed.count("plain.css"), listed.count("app.aaa.css")) == (1, 1), "plain.css for B alone"
    # B has not served for 1 day, A for 2.
    here.clock.sleep(timedelta(days=28.5).total_seconds())
    assert pool.prune(here.host, "shop", days=30) == ["site/app.aaa.css"]
    here.clock.sleep(timedelta(days=1).total_seconds())
    assert pool.prune(here.host, "shop", days=30) == ["site/app.bbb.css", "site/plain.css"]


def test_empty_directories_go(here: Machine) -> None:
    static = here.layout.generation("shop", A) / "static"
    (static / "deep/er").mkdir(parents=True)
    (static / "deep/er/file.css").write_text("x")
    for identifier in (A, B, C):
        serve(here, identifier)
    assert "deep/er/file.css" in pool.prune(here.host, "shop", max_bytes=0)
    assert not (here.layout.app("shop") / "static-pool/deep").exists()
