"""Which of a generation's passwords are no longer good: others, such as Redis, forget an old one at the end of its time."""

import re

from quintet_host.files import read_json_object
from quintet_host.generation import Generation
from quintet_host.host import Host


def ended(host: Host, generation: Generation) -> list[str]:
    """Return the names of a generation's passwords that nobody accepts any more; raises QuintetError and OSError.

    settings.json names the secrets in question, rotations.json says which of their values are good.
    """
    app = generation.app
    rotations = read_json_object(host.layout.configuration(app) / "rotations.json") or {}
    found = []
    for name in host.settings(app).get("passwords", []):
        rotation = rotations.get(name)
        value = _value(host, generation, name)
        if rotation is None or value is None:
            continue
        if value not in {rotation["value"], *(old["value"] for old in rotation["old"])}:
            found.append(name)
    return found


def _value(host: Host, generation: Generation, name: str) -> str | None:
    # As the module app_environment has written it: a file, or a line that systemd reads.
    revision = host.layout.configuration(generation.app) / "revisions" / str(generation.revision)
    credential = revision / "credentials" / name
    if credential.exists():
        return credential.read_text()
    environment = revision / "environment"
    line = re.search(rf'^{name}="(.*)"$', environment.read_text(), re.MULTILINE) if environment.exists() else None
    return re.sub(r"\\(.)", r"\1", line[1]) if line else None
