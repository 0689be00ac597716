"""Make sure that there is a Chromium for the tests of the page, from Debian's packages."""

from __future__ import annotations

from console import install, main, say, which


def ensure_browser() -> None:
    """Return when there is a chromium command; raises `Failure` when that can't be had."""
    if which("chromium") is None:
        install(["chromium"], "test the page in a real browser")
    say(f"The browser is {which('chromium')}")


if __name__ == "__main__":
    main(ensure_browser)
