"""The files of an app on two hosts: those of one host, through the edge (Molecule scenario cluster)."""

from __future__ import annotations

import collections
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from cluster import FOLDER, HOSTS, SITE, asked, container
from hosts import Host, Played, play, wait_for

pytestmark = pytest.mark.thorough

KEEPER, OTHER = HOSTS["app1"], HOSTS["app2"]
MEDIA = "/srv/chat/shared/media"
UPLOADS = 8
READS = 10
# Nginx's own answers while the only host for a path is not there: refused, not reached in time.
GONE = (502, 503, 504)


def names(host: Host) -> set[str]:
    """The files that a host has of the app, less marks of ours."""
    return {name for name in host.run("ls", "-A", MEDIA).split() if not name.startswith(".")}


@pytest.fixture(scope="module")
def uploads() -> dict[str, str]:
    """Send some files through the edge; gives what was in them, by where they are found."""
    sent = {}
    for _ in range(UPLOADS):
        text = uuid.uuid4().hex * 1000
        answer = SITE.request("POST", f"/upload/{uuid.uuid4().hex}.txt", body=text)
        assert answer.status == 201, answer
        assert answer.json["host"] == KEEPER.name
        sent[answer.json["url"]] = text
    return sent


def test_what_one_visitor_sends_every_visitor_sees(uploads: dict[str, str]) -> None:
    hosts: collections.Counter[str] = collections.Counter()
    for url, text in uploads.items():
        for _ in range(READS):
            hosts[asked()["host"]] += 1
            answer = SITE.get(url)
            assert (answer.status, answer.body == text) == (200, True), url
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["cache-control"] == "public, max-age=300"
    # Meanwhile both were asked for everything else.
    assert min(hosts[host.name] for host in (KEEPER, OTHER)) >= len(uploads) * READS / 3, hosts


def test_files_are_on_the_host_that_keeps_them_alone(uploads: dict[str, str]) -> None:
    assert names(KEEPER) >= {url.rpartition("/")[2] for url in uploads}
    assert names(OTHER) == set()


def test_a_write_on_another_host_is_a_loud_error() -> None:
    name = f"{uuid.uuid4().hex}.txt"
    # By a path that the app has not named as one for uploads, so that it reaches both.
    answers = collections.Counter(
        SITE.request("POST", f"/elsewhere/{number}-{name}", body="x").status for number in range(20)
    )
    assert set(answers) == {201, 500}, answers
    kept = {one for one in names(KEEPER) if one.endswith(name)}
    assert len(kept) == answers[201]
    assert names(OTHER) == set()
    journal = OTHER.run("journalctl", "--unit=gunicorn-chat@*", "--since=-2min", "--output=cat")
    assert "OSError: [Errno 30] Read-only file system" in journal
    # Nor by the other ways to run the app's code.
    write = "from django.core.files.storage import default_storage as s; s.save('x', __import__('io').BytesIO(b'x'))"
    assert "Read-only file system" in OTHER.run("quintet", "manage", "chat", "shell", "-c", write, check=False)


def test_without_the_host_of_the_files_everything_else_goes_on(uploads: dict[str, str]) -> None:
    url, text = next(iter(uploads.items()))
    container("kill", "app1")
    try:
        for _ in range(3):
            answer = SITE.get(url)
            assert answer.status in GONE
            assert answer.headers["retry-after"] == "10"
            assert SITE.request("POST", "/upload/x.txt", body="x").status in GONE
        # The next one may have been on its way when the edge noticed.
        wait_for("the other host alone", lambda: SITE.get("/telling").status == 200, 10)
        for _ in range(20):
            assert asked()["host"] == OTHER.name
    finally:
        container("start", "app1")
    wait_for("its files", lambda: SITE.get(url).body == text)


# ---- what is refused before anything is touched -------------------------------------------------------------------------


@contextmanager
def inventory(name: str, **change: Any) -> Iterator[Path]:
    """Give a copy of the inventory, beside it, in which the app says something else; None takes a word away."""
    copied = FOLDER / f"inventory-{name}"
    shutil.rmtree(copied, ignore_errors=True)
    shutil.copytree(FOLDER / "inventory", copied)
    file = copied / "group_vars/all/apps.yml"
    apps = yaml.safe_load(file.read_text())
    app = {**apps["django_apps"][0], **change}
    file.write_text(yaml.safe_dump({"django_apps": [{key: value for key, value in app.items() if value is not None}]}))
    try:
        yield copied
    finally:
        shutil.rmtree(copied)


def refused(name: str, shared_files: dict[str, Any] | None) -> Played:
    """Run site.yml with another word about the files; it must stop and change nothing."""
    before = {host.name: (host.current("chat"), names(host)) for host in (KEEPER, OTHER)}
    with inventory(name, shared_files=shared_files) as where:
        played = play("site.yml", "--tags", "django_app", inventory=where)
    assert played.code != 0
    assert played.changed == 0, played.changed_tasks
    assert before == {host.name: (host.current("chat"), names(host)) for host in (KEEPER, OTHER)}
    return played


def test_without_a_choice_the_run_stops_with_the_choices() -> None:
    told = refused("unsaid", None).text
    assert "app 'chat' keeps files (shared: media, once) and runs on app1, app2" in told
    for line in (
        "shared_files: {kind: one_host, host: app1, upload_paths: [/upload/]}",
        "shared_files: {kind: mount, source: '10.0.0.41:/srv/chat', type: nfs4}",
        "shared_files: {kind: object_storage}",
    ):
        assert line in told


@pytest.mark.usefixtures("uploads")
@pytest.mark.parametrize(
    ("name", "shared_files", "host", "said"),
    [
        ("unmounted", {"kind": "mount"}, "app2", "nothing is mounted at /srv/chat/shared on app2"),
        (
            "hidden",
            {"kind": "mount", "source": "10.0.0.41:/x"},
            "app1",
            "is on the own disk of app1, where a mount would",
        ),
        ("moved", {"kind": "one_host", "host": "app2"}, "app1", "is on app1, and shared_files says that app2 has the"),
    ],
)
def test_no_file_is_hidden_and_none_written_beneath_a_mount(
    name: str, shared_files: dict[str, Any], host: str, said: str
) -> None:
    played = refused(name, shared_files)
    assert said in played.text
    assert played.count(host, "failed") == 1
