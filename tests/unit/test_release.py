"""The release id: what changes it and what does not."""

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.quintet.django.plugins.module_utils.apps import load_schema, normalize
from ansible_collections.quintet.django.plugins.module_utils.release import release_id, templates_digest

SHOP: dict[str, Any] = {"name": "shop", "domains": ["a.example.org"], "source": {"directory": "src"}}


def release_of(change: dict[str, Any] | None = None, **parts: Any) -> str:
    app = normalize({**SHOP, **(change or {})}, load_schema())
    identity: str = release_id(
        app, **{"environment": {"A": "1"}, "source": "s", "lock": "l", "templates": "t", **parts}
    )
    return identity


def test_it_is_eight_hex_digits_and_stable() -> None:
    assert release_of() == release_of()
    assert len(release_of()) == 8
    int(release_of(), 16)


@pytest.mark.parametrize(
    "parts",
    [{"source": "x"}, {"lock": "x"}, {"templates": "x"}, {"environment": {"A": "2"}}],
    ids=lambda parts: next(iter(parts)),
)
def test_source_lock_templates_and_environment_change_it(parts: dict[str, Any]) -> None:
    assert release_of(**parts) != release_of()


@pytest.mark.parametrize(
    "change",
    [
        {"gunicorn": {"threads": 4}},
        {"wsgi": "a.b:c"},
        {"secrets": {"SECRET_KEY": "", "OTHER": ""}},
        {"shared": ["media", "x"]},
        {"hooks": {"after_switch": [{"command": "true"}]}},
        {"workers": [{"name": "mail", "command": "celery worker"}]},
        {"timers": [{"name": "nightly", "command": "true", "calendar": "daily"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_change_it(change: dict[str, Any]) -> None:
    assert release_of(change) != release_of()


@pytest.mark.parametrize(
    "change",
    [
        {"domains": ["b.example.org"]},
        {"aliases": ["c.example.org"]},
        {"nginx": {"keepalive": 4}},
        {"probes": [{"path": "/x"}]},
        {"secrets": {"SECRET_KEY": "another value"}},
        {"source": {"directory": "elsewhere"}},
        {"wsgi": "config.wsgi:application"},
        {"keep_generations": 9},
        {"dump": {"enabled": False}},
        {"migration_lock_seconds": 5},
        {"worker_stay_seconds": 9},
        {"static_pool": {"days": 1}},
        {"tls": "self_signed"},
        {"shared_files": {"kind": "one_host", "host": "app1"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_edge_the_way_of_a_change_secret_values_and_written_defaults_do_not(change: dict[str, Any]) -> None:
    assert release_of(change) == release_of()


def test_templates_digest_sees_a_changed_template(tmp_path: Path) -> None:
    (tmp_path / "roles/gunicorn/templates").mkdir(parents=True)
    template = tmp_path / "roles/gunicorn/templates/x.j2"
    template.write_text("a")
    before = templates_digest(tmp_path)
    template.write_text("b")
    assert templates_digest(tmp_path) != before
