"""The drop-ins of Nginx and PostgreSQL, and the sandbox of apps that the controller refuses."""

from __future__ import annotations

import pytest
from ansible_collections.quintet.django.plugins.action.check_apps import sandbox_problems
from rendering import FACTS, Role

DEBIAN = {**FACTS, "distribution": "Debian", "distribution_major_version": "13"}


def dropin(name: str, **given: object) -> list[str]:
    """Return the lines of a role's sandbox."""
    role = Role(name, **{"ansible_facts": DEBIAN, **{f"{name}_{key}": value for key, value in given.items()}})
    return role.render("sandbox.conf.j2").splitlines()


@pytest.mark.parametrize("name", ["nginx", "postgresql"])
def test_a_drop_in_keeps_what_a_server_needs_and_no_more(name: str) -> None:
    lines = dropin(name)
    for line in ("ProtectSystem=strict", "NoNewPrivileges=yes", "PrivateUsers=no", "SystemCallFilter=@system-service"):
        assert line in lines
    (capabilities,) = (line for line in lines if line.startswith("CapabilityBoundingSet="))
    assert {"CAP_SETUID", "CAP_SETGID", "CAP_KILL"} <= set(capabilities.partition("=")[2].split())
    assert "CAP_SYS_ADMIN" not in capabilities
    assert ("CAP_NET_BIND_SERVICE" in capabilities) == (name == "nginx")
    assert ("MemoryMax=25%" in lines) == (name == "nginx")


def test_limits_and_directives_are_variables() -> None:
    lines = dropin("nginx", memory_max="", tasks_max=9, oom_score_adjust=1, sandbox={"ProtectHome": "read-only"})
    assert {"TasksMax=9", "OOMScoreAdjust=1", "ProtectHome=read-only"} <= set(lines)
    assert not [line for line in lines if line.startswith("MemoryMax")]
    assert "TasksMax=120" in dropin("postgresql", max_connections=10)


@pytest.mark.parametrize("name", ["nginx", "postgresql"])
def test_another_sandbox_has_another_digest(name: str) -> None:
    def record(**given: object) -> str:
        (line,) = (line for line in dropin(name, **given) if line.startswith("ExecStartPre="))
        return line

    assert record() == record()
    assert record() != record(sandbox={"ProtectHome": "read-only"})
    assert record() != record(tasks_max=9)


def test_a_directive_that_is_none_is_refused_on_the_controller() -> None:
    apps = [{"sandbox": {}}, {"sandbox": {"ProtectHme": "no"}}]
    (said,) = sandbox_problems(apps, ["django_apps[0]", "django_apps[1]"])
    assert said.startswith("django_apps[1].sandbox.ProtectHme: 'ProtectHme' is not a sandbox directive")
    assert "Correct its name" in said
