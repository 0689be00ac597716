"""Two people with two browsers, on the page that people see (a part of Molecule scenario default)."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator

import pytest
from hosts import Host
from playwright.sync_api import Browser, Page, expect, sync_playwright

DOMAIN = "chat.test"
NAMES = ["quintet-bookworm", "quintet-trixie"]
# A restart closes the page's socket and the page comes back by itself.
RECONNECT_MILLISECONDS = 30_000


@pytest.fixture(params=NAMES)
def host(request: pytest.FixtureRequest) -> Host:
    return Host(request.param)


@pytest.fixture
def browser(host: Host) -> Iterator[Browser]:
    arguments = [
        f"--host-resolver-rules=MAP {DOMAIN} {host.address}",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium's own refuses root
    ]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=arguments)
        yield chromium
        chromium.close()


def enter(browser: Browser) -> Page:
    """Come as a new person, with cookies of their own, by the link on the first page."""
    page = browser.new_context().new_page()
    page.goto(f"http://{DOMAIN}/")
    page.get_by_role("link", name="Lobby").first.click()
    expect(page.get_by_role("status")).to_contain_text("Connected", timeout=RECONNECT_MILLISECONDS)
    return page


def write(page: Page, text: str) -> None:
    page.get_by_role("textbox").last.fill(text)
    page.get_by_role("button", name="Send").click()


def test_two_people_chat_and_a_restart_loses_nothing(browser: Browser, host: Host) -> None:
    problems: list[str] = []
    one, two = enter(browser), enter(browser)
    for page in (one, two):
        page.on("pageerror", lambda error: problems.append(str(error)))
    hello, answer, later = (f"{word} {uuid.uuid4()}" for word in ("hello", "answer", "later"))
    write(one, hello)
    expect(two.get_by_role("log")).to_contain_text(hello)
    write(two, answer)
    expect(one.get_by_role("log")).to_contain_text(answer)

    # While Daphne is away a message waits in the page, which comes back by itself and sends it.
    units = [f"daphne-chat-{number}@{host.current('chat')}.service" for number in (1, 2)]
    socket = f"daphne-chat@{host.current('chat')}.socket"
    host.run("systemctl", "stop", socket, *units)
    expect(one.get_by_role("status")).not_to_contain_text("Connected", timeout=RECONNECT_MILLISECONDS)
    write(one, later)
    host.run("systemctl", "start", socket, *units)
    for page in (one, two):
        expect(page.get_by_role("log")).to_contain_text(later, timeout=RECONNECT_MILLISECONDS)
        expect(page.get_by_role("status")).to_contain_text("Connected", timeout=RECONNECT_MILLISECONDS)
        for text in (hello, answer, later):
            assert page.get_by_role("log").get_by_text(text).count() == 1, text
    assert problems == []
