# Copyright (c) 2026 The Quintet authors
# MIT License (see LICENSE)
"""The one schema of an app's dictionary: what is wrong with some apps, and what they are with all defaults filled in.

The schema is the option `django_app` in the argument spec of the role django_app.
"""

from __future__ import annotations

import copy
import difflib
import functools
import re
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.module_utils.common.yaml import yaml_load

Schema = dict[str, Any]
App = dict[str, Any]

ROLES = Path(__file__).resolve().parents[2] / "roles"

APP_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")
USER_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,25}")
DATABASE_ROLE = re.compile(r"[a-z][a-z0-9_]*")
# What PostgreSQL would normalize before it compares is left out, and what could be guessed.
DATABASE_PASSWORD = re.compile(r"[ -~]{16,}")
HOST_NAME = re.compile(
    r"(?=.{1,253}$)(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?|\[[0-9a-f:.]+\]"
)
APPLICATION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
UNIT_NAME = re.compile(r"[a-z][a-z0-9_]{0,23}")
SIGNAL = re.compile(r"SIG[A-Z0-9+-]+")
# systemd would drop a 0, or more than 100 %, and start the unit without any limit.
MEMORY = re.compile(r"(?=.*[1-9])(\d+(\.\d+)?[KMGT]?|(100|\d{1,2}(\.\d{1,2})?)%)|infinity")
OOM_SCORE_LIMIT = 1000
# Of a database's URL, in the ways that Django's packages write it.
POSTGRESQL_SCHEME = re.compile(r"(postgres|postgresql|postgis|psql|pgsql)([+-]\w+)?")
SHARED_DIRECTORY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
# A path of a URL that Nginx can have a location for; the whole site is none of them.
LOCATION = re.compile(r"/[A-Za-z0-9._~+@-][A-Za-z0-9._~/+@-]*")
# One word of a unit of systemd's: % would stand for something else.
MOUNT_WORD = re.compile(r"[^\s%\\\"'\0]+")
# Which kind of shared files each of their settings belongs to.
SHARED_FILES = {
    "host": ("one_host",),
    "upload_paths": ("one_host",),
    "source": ("mount",),
    "options": ("mount",),
    "host_only": ("one_host", "object_storage"),
}

# Users that Debian, or a package of Debian's, makes: base-passwd, systemd and the services that stand around a site.
# Whatever else exists on a host is found there.
SYSTEM_USERS = frozenset(
    """
    root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc nobody nogroup
    messagebus systemd-network systemd-timesync systemd-resolve polkitd sshd ntp chrony postfix exim dovecot
    bind mysql postgres redis valkey memcache nginx apache caddy haproxy rabbitmq elasticsearch prometheus
    grafana docker ftp avahi tss sudo adm admin staff users shadow utmp ssh operator src kmem tty disk debian
    ubuntu quintet
    """.split()  # noqa: SIM905 (sixty quoted words in a column hide what is there)
)

# What the roles themselves say to an app; a value of the user's would be a second truth.
RESERVED_VARIABLES = {
    "DJANGO_SETTINGS_MODULE": "settings_module",
    "CREDENTIALS_DIRECTORY": "secrets",
    "QUINTET_GENERATION": "",
    "STATIC_ROOT": "",
    "MEDIA_ROOT": "",
}

# What an empty text is good for. No value at all would reach the app as the text None: a SECRET_KEY that anybody guesses.
NOTHING = {
    "environment": "an empty text, or remove it",
    "secrets": "a secret that is generated once",
    "build_environment": "an empty text, or remove it",
}


# The longest time that a worker may take to stop; below the host command's own limit for a call of systemd's.
STOP_SECONDS = 3000
# The longest time that one must stay; with it an activate ends before its switch would be taken back as unconfirmed.
STAY_SECONDS = 60


@functools.cache
def load_schema(roles: Path = ROLES) -> Schema:
    """Return the options of an app's dictionary by name.

    Read once in a process: Ansible evaluates a variable with the app's defaults each time that it is mentioned.
    """
    spec = yaml_load((roles / "django_app/meta/argument_specs.yml").read_text())
    options: Schema = spec["argument_specs"]["main"]["options"]["django_app"]["options"]
    return options


# Roles whose settings an app's dictionary may hold under the role's name.
ROLES_WITH_SETTINGS = ("gunicorn", "daphne", "nginx", "redis")


def role_settings(role: str, roles: Path = ROLES) -> set[str]:
    """Return the names that an app's dictionary may hold under a role's name: those that its defaults look up there."""
    return set(re.findall(rf"django_app\.{role}\.(\w+)", (roles / role / "defaults/main.yml").read_text()))


def with_defaults(value: dict[str, Any], schema: Schema) -> dict[str, Any]:
    """Return a copy with every option of the schema, also in nested dictionaries, defaults filled in."""
    filled: dict[str, Any] = {}
    for key, option in schema.items():
        found = value.get(key)
        # A copy, so that nobody who changes an app changes the schema.
        found = copy.deepcopy(option.get("default")) if found is None else found
        if "options" in option and isinstance(found, dict):
            found = with_defaults(found, option["options"])
        elif "options" in option and isinstance(found, list):
            found = [with_defaults(item, option["options"]) for item in found]
        filled[key] = found
    return filled


def plain(value: Any) -> Any:
    """Return a value of plain containers and texts.

    Ansible's own containers evaluate templates when they are read, and its own texts, which know where they come from, are slow to copy.
    """
    if isinstance(value, dict):
        return {plain(key): plain(content) for key, content in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return str.__str__(value) if isinstance(value, str) else value


def normalize(app: App, schema: Schema) -> App:
    """Return the app with all defaults, those that follow from its name and domains included.

    Values are of their options' types: a number may have come as text, out of a template or from the command line.
    """
    given = plain(app)
    validated = ArgumentSpecValidator(schema).validate(given)
    filled = with_defaults(given if validated.error_messages else validated.validated_parameters, schema)
    filled["user"] = filled["user"] or filled["name"]
    if filled["channel_layer"] is None:
        filled["channel_layer"] = filled["asgi"] != ""
    # From the name and not from the app's place among the others: one that comes or goes moves nobody else's.
    filled["channel_layer_port"] = filled["channel_layer_port"] or 20000 + zlib.crc32(filled["name"].encode()) % 10000
    probes = filled["probes"] or [with_defaults({"path": "/"}, schema["probes"]["options"])]
    # YAML reads off as false.
    filled["tls"] = str(filled["nginx"].get("tls", filled["tls"])).replace("False", "off")
    scheme = "http" if filled["tls"] == "off" else "https"
    filled["probes"] = [complete_probe(probe, filled["domains"], scheme) for probe in probes]
    for hooks in filled["hooks"].values():
        for hook in hooks:
            hook["name"] = hook["name"] or hook["command"].strip()
    return filled


def complete_probe(probe: dict[str, Any], domains: list[str], scheme: str) -> dict[str, Any]:
    """Return a probe as the host command reads it: all said, None for what does not matter.

    `scheme` is that of probes that name none.
    """
    host = probe["host"] or next(iter(domains), "localhost")
    scheme = probe["scheme"] or scheme
    return {
        **probe,
        "scheme": scheme,
        "name": probe["name"] or f"{probe['kind']} {probe['path']}",
        "host": host,
        "origin": probe["origin"] or f"{scheme}://{host}",
        **{key: probe[key] or None for key in ("subprotocol", "send", "status", "json", "text")},
    }


def no_such_setting(where: str, name: str, known: Iterable[str]) -> str:
    """Say that a setting does not exist, with the one that was probably meant."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean '{near[0]}'?" if near else f"It may have: {', '.join(sorted(known))}."
    return f"{where}: there is no such setting. {hint}"


def unknown_role_settings(app: App, where: str) -> list[str]:
    """Name every setting of a role that the role does not have."""
    found = []
    for role in ROLES_WITH_SETTINGS:
        given = app.get(role)
        if isinstance(given, dict) and given:
            known = role_settings(role)
            found += [no_such_setting(f"{where}.{role}.{key}", str(key), known) for key in given if key not in known]
    return found


def unknown_keys(value: Any, schema: Schema, where: str) -> list[str]:
    """Name every key that the schema does not have, with the one that was probably meant."""
    if not isinstance(value, dict):
        return []
    found = []
    for key, content in value.items():
        option = schema.get(key)
        if option is None:
            found.append(no_such_setting(f"{where}.{key}", str(key), schema))
        elif "options" in option:
            items = content if isinstance(content, list) else [content]
            for number, item in enumerate(items):
                inner = f"{where}.{key}[{number}]" if isinstance(content, list) else f"{where}.{key}"
                found += unknown_keys(item, option["options"], inner)
    return found


def type_problems(app: App, schema: Schema, where: str) -> list[str]:
    """Say what has a wrong type or value, or is missing, in the words of Ansible's own validator."""
    known = {key: value for key, value in app.items() if key in schema}
    messages = ArgumentSpecValidator(schema).validate(known).error_messages
    return [f"{where}: {message}." for message in messages if "Unsupported parameters" not in message]


def value_problems(app: App, where: str) -> list[str]:
    """Say which values cannot work, for an app whose types are right and whose defaults are filled in."""
    found = []
    if not 1024 <= app["channel_layer_port"] <= 65535:
        found.append(
            f"{where}.channel_layer_port: {app['channel_layer_port']} can't be it. Give one from 1024 to 65535."
        )
    name, user = app["name"], app["user"]
    if not APP_NAME.fullmatch(name):
        found.append(
            f"{where}.name: '{name}' can't name an app. Take 1 to 24 characters of a-z, 0-9 and _, with a letter first."
        )
    elif user in SYSTEM_USERS:
        key = "name" if user == name else "user"
        found.append(
            f"{where}.{key}: '{user}' is a user that the system or one of its packages has. Choose another {key}."
        )
    elif not USER_NAME.fullmatch(user):
        found.append(
            f"{where}.user: '{user}' can't name a user. Take 1 to 26 characters of a-z, 0-9, _ and -, a letter first."
        )
    for key in ("domains", "aliases"):
        found += [
            f"{where}.{key}: '{domain}' is no host name. Write names like chat.example.org: no scheme, port or path."
            for domain in app[key]
            if not HOST_NAME.fullmatch(str(domain).lower())
        ]
    for key in ("wsgi", "asgi"):
        if app[key] and not APPLICATION.fullmatch(app[key]):
            found.append(f"{where}.{key}: '{app[key]}' names no application. Write it as config.{key}:application.")
    for key in ("environment", "secrets", "build_environment"):
        for variable, value in app[key].items():
            if not VARIABLE.fullmatch(str(variable)):
                found.append(f"{where}.{key}: '{variable}' can't name a variable. Use letters, digits and _.")
            elif variable in RESERVED_VARIABLES:
                instead = RESERVED_VARIABLES[variable]
                advice = f"Set {where}.{instead} instead." if instead else "Remove it and read theirs."
                found.append(f"{where}.{key}.{variable}: the roles set this variable themselves. {advice}")
            elif value is None:
                found.append(f'{where}.{key}.{variable}: says nothing. Write "" for {NOTHING[key]}.')
            elif isinstance(value, dict | list) or re.search(r"[\n\r\0]", str(value)):
                found.append(f"{where}.{key}.{variable}: is not one line of text. Give it as one line, or as a file.")
    both = sorted(set(app["environment"]) & set(app["secrets"]))
    found += [f"{where}.environment.{variable}: is in secrets too. Keep one of them." for variable in both]
    # The first is the option's default, which need not fit the app; the second is made by the roles.
    secrets = {"SECRET_KEY", *(["CHANNEL_LAYER_PASSWORD"] if app["channel_layer"] else []), *app["secrets"]}
    found += [
        f"{where}.secret_fallbacks.names: '{name}' is none of the app's secrets, so no old value of it would be kept. "
        f"Name one of {', '.join(sorted(secrets))}."
        for name in app["secret_fallbacks"]["names"]
        if name not in secrets
    ]
    found += [
        f"{where}.shared: '{path}' can't be a directory below shared/. Give a relative path without '..'."
        for path in app["shared"]
        if not SHARED_DIRECTORY.fullmatch(path)
    ]
    found += [
        f"{where}.shared: '{path}' lies in '{other}', where the app could put a link in its place. Keep one of them."
        for path in app["shared"]
        for other in app["shared"]
        if path.startswith(f"{other}/")
    ]
    for key in ("static_url", "media_url"):
        if app[key] and not re.fullmatch(r"/([A-Za-z0-9._~-]+/)+", app[key]):
            found.append(f"{where}.{key}: '{app[key]}' is no path. Begin and end it with /, for example /static/.")
    for path in app["websocket_paths"]:
        if not path.startswith("/"):
            found.append(f"{where}.websocket_paths: '{path}' is no path. Begin it with /, for example /ws/.")
    for number, probe in enumerate(app["probes"]):
        place = f"{where}.probes[{number}]"
        if not re.fullmatch(r"/[^\s\0]*", probe["path"]):
            found.append(f"{place}.path: '{probe['path']}' is no path. Begin it with /, without blanks: /healthz.")
        if not re.fullmatch(r"[A-Za-z]+", probe["method"]):
            found.append(f"{place}.method: '{probe['method']}' is no method of HTTP. Write GET, HEAD, POST or another.")
        if not isinstance(probe["send"], dict | str | None):
            found.append(f"{place}.send: is neither a JSON object nor a text. Write it as {{type: ping}} or as 'ping'.")
    if app["keep_generations"] < 2:
        found.append(
            f"{where}.keep_generations: {app['keep_generations']} leaves nothing to go back to. Keep 2 or more."
        )
    if app["tls"] == "acme":
        found += [
            f"{where}.{key}: '{domain}' can get no certificate by tls: acme, which asks a site at its names. "
            "Take it from the app, or give a certificate with tls: provided."
            for key in ("domains", "aliases")
            for domain in app[key]
            if re.match(r"[*\[]|[0-9.]+$", str(domain))
        ]
    found += shared_files_problems(app, where)
    return found + database_problems(app, where) + command_problems(app, where) + limit_problems(app, where)


def common_directories(app: App) -> list[str]:
    """Return the directories of `shared` whose files are the app's on all hosts, not a host's own."""
    return [path for path in app["shared"] if path not in app["shared_files"]["host_only"]]


def shared_files_problems(app: App, where: str) -> list[str]:
    """Say what cannot be in an app's words about how its hosts share its files."""
    given, place = app["shared_files"], f"{where}.shared_files"
    kind, host_only = given["kind"], given["host_only"]
    found = [
        f"{place}.{key}: is for kind {' or '.join(kinds)}, and the kind is {kind or 'not said'}. "
        f"Remove it, or write kind: {kinds[0]}."
        for key, kinds in SHARED_FILES.items()
        if given[key] and kind not in kinds
    ]
    found += [
        f"{place}.host_only: '{path}' is none of the directories in {where}.shared. Name one of {', '.join(app['shared'])}."
        if app["shared"]
        else f"{place}.host_only: '{path}' is no directory of the app's, as {where}.shared is empty. Remove it."
        for path in host_only
        if path not in app["shared"]
    ]
    found += [
        f"{place}.host_only: '{path}' is what visitors are shown at {app['media_url']}, by whichever host they come to. "
        "Each host can't have its own: remove it here."
        for path in host_only
        if path.split("/")[0] == "media" and app["media_url"]
    ]
    if kind == "object_storage":
        found += [
            f"{where}.shared: '{path}' is a directory on each host, and the app's files are in object storage. Remove it "
            f"(shared: [] if it is the only one), or add it to {place}.host_only if each host may have other files there, as in a cache."
            for path in common_directories(app)
        ]
    if kind == "one_host" and not given["host"]:
        found.append(f"{place}.host: is missing. Name the app host whose directory it is, as the inventory calls it.")
    for path in given["upload_paths"]:
        if not LOCATION.fullmatch(path):
            found.append(
                f"{place}.upload_paths: '{path}' is no path below /. Write one as /upload/, with all below it."
            )
        elif any(path.startswith(other) for other in app["websocket_paths"]):
            found.append(f"{place}.upload_paths: '{path}' is for WebSockets. Take another path for uploads.")
        elif any(url and path.startswith(url) for url in (app["static_url"], app["media_url"])):
            found.append(
                f"{place}.upload_paths: '{path}' is for files that Nginx sends. Take another path for uploads."
            )
    words = {
        "source": [given["source"]] if given["source"] else [],
        "type": [given["type"]],
        "options": given["options"],
    }
    found += [
        f"{place}.{key}: '{word}' is not one word without quotes, \\ and %. Write it as mount(8) takes it, for example "
        "10.0.0.41:/srv/media, nfs4, nosuid."
        for key, value in words.items()
        for word in value
        if not MOUNT_WORD.fullmatch(word) or "," in word
    ]
    if given["options"] and kind == "mount" and not given["source"]:
        found.append(
            f"{place}.options: are for a file system that the roles mount. Give its source, or remove them and mount it yourself."
        )
    return found


def unshared_problems(apps: list[App], where: list[str], hosts: list[str]) -> list[str]:
    """Say which apps would have other files on each of several app hosts."""
    found = []
    for app, place in zip(apps, where, strict=True):
        kind, host, common = app["shared_files"]["kind"], app["shared_files"]["host"], common_directories(app)
        if kind == "one_host" and hosts and host not in hosts:
            found.append(
                f"{place}.shared_files.host: '{host}' is no host that the app runs on. "
                f"Name one of {', '.join(hosts)}: the one that has the files."
            )
        if kind or not common or len(hosts) < 2:
            continue
        name = app["name"]
        found.append(
            f"{place}.shared_files: app '{name}' keeps files (shared: {', '.join(common)}) and runs on {', '.join(hosts)}, "
            "each of which would have other files. Say how they share them, by one of these lines:\n"
            f"    shared_files: {{kind: one_host, host: {hosts[0]}, upload_paths: [/upload/]}}\n"
            f"        the directory of {hosts[0]}: through the edge, like all requests to the paths by which files come in\n"
            f"    shared_files: {{kind: mount, source: '10.0.0.41:/srv/{name}', type: nfs4}}\n"
            f"        a network file system at /srv/{name}/shared of each host; without source, one that you mount there yourself\n"
            "    shared_files: {kind: object_storage}\n"
            "        elsewhere, by the app's own settings (django-storages); with it: shared: []\n"
            "An app that keeps no files says so: shared: []"
        )
    return found


def database_logins(app: App) -> list[str]:
    """Return the roles of PostgreSQL that log in with the app's passwords; none without such a login."""
    if not app["database"] or app["database_login"] != "password":
        return []
    return [f"{app['user']}_{number}" for number in (1, 2)]


def database_problems(app: App, where: str) -> list[str]:
    """Say why an app could not log in to its database with a password, and which time-outs are none."""
    timeouts = [
        f"{where}.database_timeouts.{name}: {value} is below 0. Give seconds, or 0 for never."
        for name, value in app["database_timeouts"].items()
        if value < 0
    ]
    return timeouts + login_problems(app, where)


def login_problems(app: App, where: str) -> list[str]:
    """Say why an app could not log in to its database with a password."""
    if app["database_login"] != "password":
        return []
    if not app["database"]:
        return [
            f"{where}.database_login: password is for the database that the roles make, and database is false. "
            f"Remove it, and give the URL of your own database in {where}.secrets.DATABASE_URL."
        ]
    found = [
        f"{where}.{key}.{variable}: with database_login: password the roles make this secret. "
        f"Remove it, or set {where}.database to false if the app uses another database."
        for key, variable in (
            ("environment", "DATABASE_URL"),
            ("secrets", "DATABASE_URL"),
            ("environment", "DATABASE_PASSWORD"),
        )
        if variable in app[key]
    ]
    if not DATABASE_ROLE.fullmatch(app["user"]):
        found.append(
            f"{where}.user: '{app['user']}' can't name a role of PostgreSQL, as database_login: password needs. "
            "Take a-z, 0-9 and _, a letter first."
        )
    password = str(app["secrets"].get("DATABASE_PASSWORD", ""))
    if password and not DATABASE_PASSWORD.fullmatch(password):
        found.append(
            f"{where}.secrets.DATABASE_PASSWORD: is shorter than 16 characters or not all printable ASCII. "
            "`openssl rand -hex 24` makes one; an empty value is generated."
        )
    return found


def command_problems(app: App, where: str) -> list[str]:
    """Say which hooks, workers and timers cannot work."""
    found = []
    for moment, hooks in app["hooks"].items():
        found += [
            f"{where}.hooks.{moment}[{number}].command: is empty. Write what is to be run, or remove the entry."
            for number, hook in enumerate(hooks)
            if not hook["command"].strip()
        ]
    for key in ("workers", "timers"):
        names: set[str] = set()
        for number, entry in enumerate(app[key]):
            place, name = f"{where}.{key}[{number}]", entry["name"]
            if not UNIT_NAME.fullmatch(name):
                found.append(
                    f"{place}.name: '{name}' can't name a unit. Take 1 to 24 characters of a-z, 0-9 and _, with a letter first."
                )
            elif name in names:
                found.append(f"{place}.name: '{name}' is already one of the {key}. Each needs its own name.")
            names.add(name)
            if not entry["command"].strip() or "\n" in entry["command"].strip():
                found.append(f"{place}.command: is not one line. Write one command, or a script in the source.")
            found += resource_problems(entry, place)
    found += resource_problems(app["commands"], f"{where}.commands")
    for number, worker in enumerate(app["workers"]):
        if not SIGNAL.fullmatch(worker["stop_signal"]):
            found.append(
                f"{where}.workers[{number}].stop_signal: '{worker['stop_signal']}' is no signal. Write it as SIGTERM or SIGINT."
            )
        if worker["runs_on"] == "one_host" and worker["processes"] > 1:
            found.append(
                f"{where}.workers[{number}].processes: {worker['processes']} of '{worker['name']}', and runs_on: one_host is for one. "
                "Leave processes out, or have it on every_host."
            )
    for number, timer in enumerate(app["timers"]):
        if not timer["calendar"].strip() or "\n" in timer["calendar"]:
            found.append(
                f"{where}.timers[{number}].calendar: says no time. Write it as systemd's OnCalendar= takes it, for example hourly."
            )
    return found


def shares_postgresql(app: App, database_address: str) -> bool:
    """Say whether an app's hosts reach one PostgreSQL, as far as its settings tell; `database_address` is that of the site's own."""
    given = {**app["environment"], **app["secrets"]}
    url = str(next((given[name] for name in ("DATABASE_DIRECT_URL", "DATABASE_URL") if given.get(name)), ""))
    if not url and "DATABASE_URL" not in given:
        return bool(app["database"] and database_address)
    try:
        parts = urlsplit(url)
        host = unquote(parts.hostname or "") or parse_qs(parts.query).get("host", [""])[0]
    except ValueError:
        return False
    is_local = host in ("", "localhost", "::1") or host.startswith(("/", "127."))
    return POSTGRESQL_SCHEME.fullmatch(parts.scheme) is not None and not is_local


def once_problems(apps: list[App], where: list[str], hosts: list[str], database_address: str) -> list[str]:
    """Say which workers and timers would run on one host, and can't, as several hosts have no database to agree in."""
    if len(hosts) < 2:
        return []
    return [
        f"{place}.{key}[{number}].runs_on: '{entry['name']}' is to run on one host, and {', '.join(hosts)} share no PostgreSQL for "
        f"'{app['name']}' in which they agree on it. Give the app one: database: true with a host in the group database, or "
        "DATABASE_URL (or DATABASE_DIRECT_URL, for this alone) in its environment or secrets, with the address of a PostgreSQL for all of "
        "them. Or set runs_on: every_host for what each host may run."
        for app, place in zip(apps, where, strict=True)
        if not shares_postgresql(app, database_address)
        for key in ("workers", "timers")
        for number, entry in enumerate(app[key])
        if entry["runs_on"] == "one_host"
    ]


def resource_problems(entry: App, place: str) -> list[str]:
    """Say which limits of memory and tasks systemd would not take."""
    found = []
    if entry["memory_max"] and not MEMORY.fullmatch(entry["memory_max"]):
        found.append(
            f"{place}.memory_max: '{entry['memory_max']}' is no amount of memory. Write it as 512M, 2G or 40%."
        )
    if entry["tasks_max"] < 1:
        found.append(f"{place}.tasks_max: {entry['tasks_max']} lets nothing run. Give 1 or more.")
    if not -OOM_SCORE_LIMIT <= entry["oom_score_adjust"] <= OOM_SCORE_LIMIT:
        found.append(
            f"{place}.oom_score_adjust: {entry['oom_score_adjust']} is no rank for the kernel. Give a number from -1000 to 1000."
        )
    return found


def limit_problems(app: App, where: str) -> list[str]:
    """Say which numbers must be above 0 and are not, and which times the host command does not wait for."""
    limits = {
        f"hooks.{moment}[{number}].timeout_seconds": hook["timeout_seconds"]
        for moment, hooks in app["hooks"].items()
        for number, hook in enumerate(hooks)
    }
    limits |= {
        f"probes[{number}].timeout_seconds": probe["timeout_seconds"] for number, probe in enumerate(app["probes"])
    }
    for key, names in (
        ("workers", ("processes", "database_connections", "stop_seconds")),
        ("timers", ("timeout_seconds", "stop_seconds")),
    ):
        limits |= {f"{key}[{number}].{name}": entry[name] for number, entry in enumerate(app[key]) for name in names}
    limits |= {
        "dump.keep": app["dump"]["keep"],
        "dump.max_mb": app["dump"]["max_mb"],
        "migration_lock_seconds": app["migration_lock_seconds"],
        "worker_stay_seconds": app["worker_stay_seconds"],
        "database_pool_size": app["database_pool_size"],
        "secret_fallbacks.days": app["secret_fallbacks"]["days"],
        "static_pool.days": app["static_pool"]["days"],
        "static_pool.max_mb": app["static_pool"]["max_mb"],
    }
    found = [f"{where}.{name}: {value} is not above 0. Give 1 or more." for name, value in limits.items() if value < 1]
    return found + [
        f"{where}.{name}: {value} is longer than a switch waits. Give {most} or less."
        for name, value in limits.items()
        for kind, most in (("stop_seconds", STOP_SECONDS), ("stay_seconds", STAY_SECONDS))
        if name.endswith(kind) and value > most
    ]


def shared_problems(apps: list[App], where: list[str]) -> list[str]:
    """Say which names, users and domains more than one app claims."""
    found = []
    for key, one in (("name", "name"), ("user", "user"), ("channel_layer_port", "channel_layer_port")):
        seen: dict[str, int] = {}
        for number, app in enumerate(apps):
            if app[key] in seen:
                found.append(
                    f"{where[number]}.{one}: '{app[key]}' is already the {one} of {where[seen[app[key]]]}. "
                    "Each app needs its own."
                )
            seen.setdefault(app[key], number)
    # Users of the system, and roles of PostgreSQL, that others are made with.
    others: dict[str, list[tuple[int, str]]] = {}
    for number, app in enumerate(apps):
        others.setdefault(f"{app['user']}-build", []).append((number, "builds the code of"))
        others.setdefault(app["name"], []).append((number, "owns the database of"))
    found += [
        f"{where[number]}.user: '{app['user']}' is who {what} {where[other]}. Choose another user."
        for number, app in enumerate(apps)
        for other, what in others.get(app["user"], [])
        if other != number
    ]
    for number, app in enumerate(apps):
        for login in database_logins(app):
            found += [
                f"{where[number]}.database_login: its login '{login}' would be the {key} of {where[other]}, too. "
                "Give one of them another user."
                for other, another in enumerate(apps)
                for key in ("name", "user")
                if another[key] == login and another["database"]
            ][:1]
    owners: dict[str, int] = {}
    for number, app in enumerate(apps):
        for key in ("domains", "aliases"):
            for domain in app[key]:
                owner = owners.setdefault(str(domain).lower(), number)
                if owner != number:
                    other = apps[owner]["name"]
                    found.append(
                        f"{where[number]}.{key}: '{domain}' is already a domain of app '{other}'.\n"
                        f"Give each domain to one app only: remove it from '{other}' or from '{app['name']}' "
                        "in your inventory."
                    )
    return found


def problems(apps: Any, label: str, schema: Schema, hosts: Sequence[str] = ()) -> list[str]:
    """Say all that is wrong with a list of apps; empty when nothing is.

    `label` is the variable's name as the user knows it, for example django_apps. `hosts` are those that the apps run on together.
    """
    if not isinstance(apps, list):
        return [f"{label}: is no list. Write one entry with a name for each app."]
    where = [f"{label}[{number}]" for number in range(len(apps))]
    found = []
    for app, place in zip(apps, where, strict=True):
        if not isinstance(app, dict):
            found.append(f"{place}: is no dictionary. Write an entry with name, source and domains.")
            continue
        found += unknown_keys(app, schema, place)
        found += unknown_role_settings(app, place)
        found += type_problems(app, schema, place)
    if found:
        return found
    filled = [normalize(app, schema) for app in apps]
    for app, place in zip(filled, where, strict=True):
        found += value_problems(app, place)
    return found + shared_problems(filled, where) + unshared_problems(filled, where, [*hosts])
