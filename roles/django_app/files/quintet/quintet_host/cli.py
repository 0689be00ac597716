"""The command line of `quintet`."""

import argparse
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from quintet_host import deploy, gate, maintenance, migrate, probes, switch
from quintet_host.drain import boot, drain
from quintet_host.errors import QuintetError, as_quintet_error, disk_advice
from quintet_host.generation import load
from quintet_host.host import Host
from quintet_host.layout import APP_NAME, GENERATION_ID, RELEASE
from quintet_host.lock import locked
from quintet_host.manage import manage
from quintet_host.prune import prune
from quintet_host.seal import seal
from quintet_host.status import app_status, as_text

FAILED, USAGE, INTERRUPTED = 1, 2, 130
MANAGE_USAGE = "usage: quintet manage APP [--generation ID] [--] ARGUMENT…"


@dataclass(frozen=True)
class Reply:
    """What a command answers: as JSON, as text, and its exit code."""

    value: Any
    text: str
    code: int = 0


Arguments = argparse.Namespace
Command = Callable[[Host, Arguments], Reply]


def main(argv: Sequence[str] | None = None, host: Host | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 1 an error, 2 wrong usage, 130 interrupted and taken back."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = _manage_arguments(given[1:]) if given[:1] == ["manage"] else _parser().parse_args(given)
    except SystemExit as leave:  # argparse has said what is wrong
        return int(leave.code or 0)
    if host is None:
        if os.geteuid() != 0:
            _complain(
                "quintet: must be run as root: it reads root's files and starts units.",
                "sudo quintet " + " ".join(given),
            )
            return FAILED
        os.umask(0o077)
        if arguments.command is not _manage:  # there, they are manage.py's
            _arrange_signals()
        host = Host()
    report = _silent if arguments.json else _say
    host = replace(host, by=arguments.by or _who(), origin=_origin(), token=arguments.token, report=report)
    try:
        reply = arguments.command(host, arguments)
    except QuintetError as error:
        if arguments.json:
            _print(json.dumps(_failure(arguments, error)))
        _complain(f"quintet: {error}")
        return FAILED
    except OSError as error:
        _complain(f"quintet: {error}", disk_advice(getattr(arguments, "app", None) or "APP"))
        return FAILED
    except KeyboardInterrupt:
        _complain("quintet: interrupted. A switch that was under way is taken back; quintet status says what serves.")
        return INTERRUPTED
    text = json.dumps(reply.value) if arguments.json else reply.text
    if text:
        _print(text)
    return int(reply.code)


def _status(host: Host, arguments: Arguments) -> Reply:
    known = host.layout.apps()
    if arguments.app and arguments.app not in known and not arguments.json:
        raise QuintetError(
            f"{arguments.app}: this host has no such app.",
            f"There is no {host.layout.generations(arguments.app)}; apps here: {', '.join(known) or 'none'}.",
            "Deploy it to this host, or look on another one.",
        )
    shown = [app_status(host, app) for app in ([arguments.app] if arguments.app else known)]
    return Reply({"apps": shown}, "\n\n".join(as_text(one) for one in shown) or "This host has no apps yet.")


def _begin(host: Host, arguments: Arguments) -> Reply:
    message = deploy.begin(
        host,
        arguments.app,
        arguments.generation,
        arguments.controller,
        build=arguments.build,
        take_over=arguments.take_over,
    )
    return Reply({"changed": True, "message": message}, message)


def _prune_after_failure(host: Host, app: str) -> None:
    """Prune, with the deploy's lock ended: deploys that fail again and again must not fill the disk."""
    _pruned(replace(host, token=""), app)


def _pruned(host: Host, app: str) -> tuple[dict[str, Any] | None, str]:
    """Prune; returns what was removed, or None and a warning: what is left over fails nothing."""
    try:
        return prune(host, app).public(), ""
    except (OSError, QuintetError) as error:
        host.log(app, "prune", "failed", reason=str(error))
        return None, f" WARNING: old generations could not be removed: {error}"


def _migrate(host: Host, arguments: Arguments) -> Reply:
    if arguments.plan:
        plan = deploy.plan_migrations(host, arguments.app, arguments.generation)
        return Reply({"changed": False, "plan": list(plan)}, "\n".join(plan) or "No migrations to apply.")
    done = deploy.migrate_database(host, arguments.app, arguments.generation)
    value = {"changed": done.changed, "applied": list(done.applied), "dump": str(done.dump) if done.dump else None}
    return Reply({**value, "message": done.message}, done.message)


def _restore(host: Host, arguments: Arguments) -> Reply:
    began = host.clock.monotonic()

    def log(result: str, **more: Any) -> None:
        seconds = host.clock.seconds_since(began)
        host.log(arguments.app, "restore", result, dump=str(arguments.file), seconds=seconds, **more)

    with locked(host, arguments.app, f"restore {arguments.app} {arguments.file}"):
        try:
            migrate.restore(host, arguments.app, arguments.file)
        except (OSError, QuintetError) as error:
            log("failed", reason=as_quintet_error(arguments.app, error).what)
            raise
    log("ok")
    message = f"{arguments.app}: the database is as it was in {arguments.file}."
    return Reply({"changed": True, "message": message}, message)


def _activate(host: Host, arguments: Arguments) -> Reply:
    done = switch.activate(
        host,
        arguments.app,
        arguments.generation,
        keep_hold=arguments.keep_hold,
        confirm_within=arguments.confirm_within,
    )
    return Reply(done.public(), done.message)


def _rollback(host: Host, arguments: Arguments) -> Reply:
    done = switch.roll_back(
        host,
        arguments.app,
        arguments.generation,
        accept_migrations=arguments.accept_migrations,
        confirm_within=arguments.confirm_within,
    )
    return Reply(done.public(), done.message)


def _confirm(host: Host, arguments: Arguments) -> Reply:
    app = arguments.app
    done = switch.confirm(host, app, arguments.generation)
    pruned, warning = _pruned(host, app)
    message = done.message + warning
    # An administrator who confirms leaves the lock to its holder.
    ended = deploy.unlock(host, app) if host.token else None
    changed = done.changed or ended is not None or bool(pruned and pruned["changed"])
    return Reply({**done.public(), "changed": changed, "pruned": pruned, "message": message}, message)


def _undo(host: Host, arguments: Arguments) -> Reply:
    done = switch.undo(host, arguments.app, arguments.generation, arguments.reason)
    if host.token:
        deploy.unlock(host, arguments.app)
        _prune_after_failure(host, arguments.app)
    return Reply(done.public(), done.message)


def _unlock(host: Host, arguments: Arguments) -> Reply:
    ended = deploy.unlock(host, arguments.app)
    if host.token:
        _prune_after_failure(host, arguments.app)
    message = f"{arguments.app}: " + (f"the lock of {ended} is ended." if ended else "there is no lock to end.")
    return Reply({"changed": ended is not None, "message": message}, message)


def _manage(host: Host, arguments: Arguments) -> Reply:
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    code = manage(host, arguments.app, arguments.generation, arguments.arguments, terminal=terminal)
    return Reply(None, "", code)


def _probe(host: Host, arguments: Arguments) -> Reply:
    app, current = arguments.app, host.layout.current_id(arguments.app)
    identifier = arguments.generation or current
    if identifier is None:
        raise QuintetError(
            f"{app}: serves nothing yet, so there is nothing to probe.",
            f"{host.layout.current(app)} does not exist.",
            f"Name a generation that runs: quintet probe {app} ID",
        )
    generation = load(host.layout, app, identifier)
    results = switch.run_probes(host, generation, through_edge=identifier == current)
    ok = all(result.ok for result in results)
    value = {"app": app, "generation": identifier, "ok": ok, "probes": [result.public() for result in results]}
    lines = [f"{'ok    ' if one.ok else 'FAILED'}  {one.seconds:6.2f} s  {one.name}: {one.message}" for one in results]
    return Reply(value, "\n".join(lines) or f"{app}: has no probes.", 0 if ok else FAILED)


def _prune(host: Host, arguments: Arguments) -> Reply:
    done = prune(host, arguments.app, arguments.keep)
    parts = [f"{len(items)} {name.replace('_', ' ')}" for name, items in vars(done).items()]
    return Reply(done.public(), f"{arguments.app}: removed {', '.join(parts)}.")


def _log(host: Host, arguments: Arguments) -> Reply:
    entries = host.store(arguments.app).read_log()[-arguments.lines :]
    return Reply({"app": arguments.app, "log": entries}, "\n".join(map(_log_line, entries)))


def _log_line(entry: dict[str, Any]) -> str:
    first = [str(entry.get(name, "?")) for name in ("time", "result", "action")]
    rest = {name: value for name, value in entry.items() if name not in ("time", "result", "action", "by")}
    return "  ".join([*first, f"by {entry.get('by', '?')}", *(f"{name}={value}" for name, value in rest.items())])


def _maintenance(host: Host, arguments: Arguments) -> Reply:
    app, wanted = arguments.app, arguments.state
    changed = False
    if wanted == "on":
        changed = maintenance.begin(host, app)
    elif wanted == "off":
        changed = maintenance.end(host, app)
    closed = bool(arguments.close_websockets) and maintenance.close_websockets(host, app)
    state = maintenance.state(host, app)
    message = f"{app}: " + (f"in maintenance since {state['since']} by {state['by']}." if state else "no maintenance.")
    if closed:
        message += " Its WebSockets were closed with 1012."
    value = {"changed": changed or closed, "maintenance": state, "closed_websockets": closed, "message": message}
    return Reply(value, message)


def _drain(host: Host, arguments: Arguments) -> Reply:
    message = drain(host, arguments.app, arguments.generation)
    return Reply({"changed": True, "message": message}, message)


def _boot(host: Host, arguments: Arguments) -> Reply:
    message = boot(host, arguments.app)
    return Reply({"changed": True, "message": message}, message)


def _rejoin(host: Host, arguments: Arguments) -> Reply:
    message = gate.rejoin(host, arguments.app)
    return Reply({"changed": True, "message": message}, message)


def _mark(host: Host, arguments: Arguments) -> Reply:
    changed = deploy.fail(host, arguments.app, arguments.generation, arguments.reason)
    if host.token:
        _prune_after_failure(host, arguments.app)
    message = f"{arguments.app}: generation {arguments.generation} is {arguments.state}."
    return Reply({"changed": changed, "message": message}, message)


def _seal(host: Host, arguments: Arguments) -> Reply:
    app, identifier = arguments.app, arguments.generation
    manifest = _manifest(app, identifier) if arguments.manifest else None
    with locked(host, app, f"seal {app} {identifier}"):
        changed = seal(host, app, identifier, manifest)
    message = f"{app}: generation {identifier} is sealed."
    return Reply({"changed": changed, "message": message}, message)


def _manifest(app: str, identifier: str) -> dict[str, Any]:
    try:
        value = json.loads(sys.stdin.read())
    except ValueError as error:
        value = error
    if not isinstance(value, dict):
        raise QuintetError(
            f"{app}: what should describe generation {identifier} is no JSON object ({value}).",
            "It was given on standard input (--manifest -).",
            "Give the text of a generation.json.",
        )
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quintet", description="Look after the apps on this host.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=command)
        one.add_argument("--json", action="store_true", help="answer with one JSON object")
        one.add_argument("--by", metavar="WHO", default="", help="who asks, for lock, hold and log")
        one.add_argument("--token", metavar="TOKEN", default="", help="of the deploy that this is a step of")
        return one

    one = add("status", _status, "apps, their generations and units, and holds")
    one.add_argument("app", metavar="APP", nargs="?", type=_app)
    one = add("activate", _activate, "start a generation, probe it and let it serve; on failure leave all as it was")
    _add_app(one, "ID")
    one.add_argument("--keep-hold", action="store_true", help="do not end a rollback's hold")
    _add_confirm_within(one)
    one = add("rollback", _rollback, "let the previous good generation serve again, and hold it")
    _add_app(one)
    one.add_argument("generation", metavar="ID", type=_generation_or_release, nargs="?", help="or a release")
    _add_confirm_within(one)
    one.add_argument("--accept-migrations", action="store_true", help="even if it does not know all migrations")
    one = add("confirm", _confirm, "let a switch stay that would be taken back")
    _add_app(one, "ID")
    one = add("undo", _undo, "take a switch back that nobody has confirmed")
    _add_app(one, "ID", optional=True)
    one.add_argument("--reason", metavar="TEXT", default="asked for", help="why, for the log")
    _add_app(add("unlock", _unlock, "end a deploy's lock whose run is gone"))
    one = add("restore", _restore, "put the database back as it was in a dump made before a migration")
    _add_app(one)
    one.add_argument("file", metavar="FILE", type=Path, help="below /var/lib/quintet/APP/dumps")
    add("manage", _manage, "manage.py with the settings of the current generation").usage = MANAGE_USAGE[7:]
    _add_app(add("probe", _probe, "run the probes"), "ID", optional=True)
    one = add("prune", _prune, "remove old generations")
    _add_app(one)
    one.add_argument("--keep", metavar="N", type=_count, help="good generations to keep (keep_generations, or 3)")
    one = add("maintenance", _maintenance, "503 for people at this host's edge: on, off or status")
    _add_app(one)
    one.add_argument("state", choices=["on", "off", "status"], nargs="?", default="status", help="(status)")
    one.add_argument(
        "--close-websockets", action="store_true", help="close the open ones with 1012, over the drain time"
    )
    one = add("log", _log, "who changed what, when, and how it ended")
    _add_app(one)
    one.add_argument("-n", "--lines", metavar="N", type=_count, default=20, help="how many of the last entries (20)")
    _add_app(add("boot", _boot, "start the current generation (for quintet-APP.service)"))
    _add_app(add("rejoin", _rejoin, "wait until the probes pass, then let the edge ask this host (boot does it)"))
    _add_app(add("drain", _drain, "stop a generation that is no longer current (activate does it)"), "ID")
    one = add("begin", _begin, "take the lock of a deploy (for the playbooks)")
    _add_app(one, "ID")
    one.add_argument("--build", action="store_true", help="clear the generation, and mark it as being built")
    one.add_argument("--controller", metavar="JSON", type=_json_object, help="the process that deploys")
    one.add_argument("--take-over", action="store_true", help="even if another deploy holds the lock")
    one = add("seal", _seal, "make a built generation root's (for the playbooks)")
    _add_app(one, "ID")
    one.add_argument("--manifest", choices=["-"], help="read its generation.json from standard input")
    one = add("migrate", _migrate, "migrate the database with a generation's code (for the playbooks)")
    _add_app(one, "ID")
    one.add_argument("--plan", action="store_true", help="only say what would be applied")
    one = add("mark", _mark, "record that a generation failed (for the playbooks)")
    _add_app(one, "ID")
    one.add_argument("state", metavar="failed", choices=["failed"])
    one.add_argument("--reason", metavar="TEXT", default="", help="why it failed")
    return parser


def _add_app(parser: argparse.ArgumentParser, generation: str = "", *, optional: bool = False) -> None:
    parser.add_argument("app", metavar="APP", type=_app)
    if generation:
        parser.add_argument("generation", metavar=generation, type=_generation, nargs="?" if optional else None)


def _add_confirm_within(parser: argparse.ArgumentParser) -> None:
    text = "take the switch back after so many seconds unless it is confirmed"
    parser.add_argument("--confirm-within", metavar="SECONDS", type=_count, help=text)


def _manage_arguments(given: Sequence[str]) -> Arguments:
    """Parse what follows `quintet manage` by hand: what comes after APP and --generation belongs to manage.py."""
    left = list(given)
    app, generation = None, None
    try:
        while left:
            if left[0] in ("-h", "--help") and app is None:
                _print(f"{MANAGE_USAGE}\n\nRun manage.py with the settings of the current generation.")
                raise SystemExit(0)
            if left[0] == "--generation":
                generation = _generation(left[1])
                left = left[2:]
            elif left[0].startswith("--generation="):
                generation = _generation(left.pop(0).partition("=")[2])
            elif app is None:
                app = _app(left.pop(0))
            else:
                break
    except (IndexError, argparse.ArgumentTypeError) as error:
        _complain(MANAGE_USAGE, f"quintet manage: error: {error}")
        raise SystemExit(USAGE) from error
    if app is None:
        _complain(MANAGE_USAGE, "quintet manage: error: which app?")
        raise SystemExit(USAGE)
    rest = left[1:] if left[:1] == ["--"] else left
    return Arguments(command=_manage, app=app, generation=generation, arguments=rest, json=False, by="", token="")


def _app(text: str) -> str:
    if not APP_NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no app's name ([a-z][a-z0-9_]{{0,23}}): see quintet status")
    return text


def _generation(text: str) -> str:
    if not GENERATION_ID.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no generation's id (as in 1f0c2a9e-77aa01bc): see quintet status"
        )
    return text


def _generation_or_release(text: str) -> str:
    return text if RELEASE.fullmatch(text) else _generation(text)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON") from error
    return value if isinstance(value, dict) else None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _failure(arguments: Arguments, error: QuintetError) -> dict[str, Any]:
    results: tuple[probes.Result, ...] = getattr(error, "probes", ())
    return {
        "changed": False,
        "failed": True,
        "generation": getattr(arguments, "generation", None),
        "step": getattr(error, "step", None),
        "probes": [result.public() for result in results],
        "message": str(error),
    }


def _who() -> str:
    return f"{os.environ.get('SUDO_USER') or os.environ.get('USER') or 'root'}@{socket.gethostname()}"


def _origin() -> str:
    """Return the address that the caller's SSH connection came from, empty when there is none.

    sudo drops the variable that says so, but the processes above it still have it.
    """
    process = os.getpid()
    while process > 1:
        try:
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            stat = Path(f"/proc/{process}/stat").read_text()
        except OSError:
            return ""
        for variable in variables:
            if variable.startswith(b"SSH_CONNECTION="):
                return variable.partition(b"=")[2].split(b" ")[0].decode("ascii", "replace")
        process = int(stat.rpartition(")")[2].split()[1])
    return ""


def _arrange_signals() -> None:
    """Let a lost terminal not stop a change half-way, and a first request to stop take it back undisturbed."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)


def _silent(_line: str) -> None:
    pass


def _say(line: str) -> None:
    _complain(line)


def _complain(*lines: str) -> None:
    _write(sys.stderr, lines)


def _print(text: str) -> None:
    _write(sys.stdout, [text])


def _write(stream: Any, lines: Sequence[str]) -> None:
    # Whoever listened may be gone, or may not know a character; what was begun goes on all the same.
    encoding = stream.encoding or "utf-8"
    try:
        for line in lines:
            stream.write(f"{line}\n".encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except OSError:
        pass
