"""Somebody has broken into the app `plain` and tries to get further: at its own code, at the app `chat`, at the host.

Each attempt is Python that runs in a child of a Gunicorn worker, so within the very sandbox. It must be refused, and the same
code must succeed where it is allowed to (the control): else it would show nothing.
"""

from __future__ import annotations

import json
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest
from hosts import Host, Site

HOSTS = [Host("quintet-intruder-bookworm"), Host("quintet-intruder-trixie")]
APP, USER, OTHER = "plain", "plain_user", "chat"

# Says in one line whether the attempt came through, and by which error it did not.
FRAME = """
import ctypes, glob, json, os, pathlib, signal, socket, stat, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)

def checked(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def plant(path):
    with open(path, "x") as file:
        file.write("x")
    os.unlink(path)

def connect(path):
    socket.socket(socket.AF_UNIX).connect(path)

def call(*command):
    # LC_ALL: messages as they are known; what is not there is no refusal.
    done = subprocess.run(command, capture_output=True, text=True, env={{**os.environ, "LC_ALL": "C"}}, timeout=15)
    if done.returncode:
        raise PermissionError(done.stderr)
    return done.stdout

def attempt():
{code}

try:
    attempt()
except (OSError, subprocess.SubprocessError) as error:
    print(json.dumps(["refused", type(error).__name__, str(error)]))
except Exception as error:
    print(json.dumps(["refused" if type(error).__name__ == "OperationalError" else "broken", type(error).__name__, str(error)]))
else:
    print(json.dumps(["came through", "", ""]))
"""

# Who must succeed with the same code: root on the host, or the other app in its own sandbox.
ROOT, THERE = "root", "the other app"


@dataclass(frozen=True)
class Attempt:
    """What is tried: {names} are filled in by `places`."""

    what: str
    code: str
    control: str


OWN = f"/srv/{APP}"
THEIRS = f"/srv/{OTHER}"
ATTEMPTS = [
    # ---- its own code
    Attempt("change its source", f"open(glob.glob('{OWN}/current/src/manage.py')[0], 'a')", ROOT),
    Attempt("add to its source", f"plant('{OWN}/current/src/planted.py')", ROOT),
    Attempt("add to its environment", f"plant('{OWN}/current/venv/planted')", ROOT),
    Attempt("replace its Python", "open('{own_python}', 'a').close(); plant('{own_python}x')", ROOT),
    Attempt("add to its static files", f"plant('{OWN}/current/static/planted')", ROOT),
    Attempt("change its units", f"plant('{OWN}/current/units/planted.service')", ROOT),
    Attempt("make its code writable", f"os.chmod('{OWN}/current/src', 0o750)", ROOT),
    Attempt("lead current elsewhere", f"os.symlink('/tmp', '{OWN}/planted'); os.unlink('{OWN}/planted')", ROOT),
    Attempt("change what its generation says", f"open('{OWN}/current/generation.json', 'a')", ROOT),
    Attempt("put a socket beside its own", f"plant('{OWN}/current/run/planted.sock')", ROOT),
    Attempt("write beside its shared files", f"plant('{OWN}/shared/planted')", ROOT),
    Attempt("write into the next build's cache", f"plant('/var/cache/quintet/{APP}/planted')", ROOT),
    Attempt("list the next build's cache", f"os.listdir('/var/cache/quintet/{APP}')", ROOT),
    Attempt("read its revisions of secrets", f"os.listdir('/etc/quintet/{APP}')", ROOT),
    Attempt("change its state", f"plant('/var/lib/quintet/{APP}/planted')", ROOT),
    # ---- the other app's files
    Attempt("read the other's source", f"open('{THEIRS}/current/src/manage.py').read()", THERE),
    Attempt("list the other's source", f"os.listdir('{THEIRS}/current/src')", THERE),
    Attempt("list the other's environment", f"os.listdir('{THEIRS}/current/venv/')", THERE),
    Attempt("read what the other's generation is", f"open('{THEIRS}/current/generation.json').read()", ROOT),
    Attempt("write the other's uploads", f"plant('{THEIRS}/shared/media/planted')", THERE),
    Attempt("list the other's uploads", f"os.listdir('{THEIRS}/shared/media')", THERE),
    Attempt("read the other's private files", f"open('{THEIRS}/shared/private/secret').read()", THERE),
    Attempt("write the other's private files", f"plant('{THEIRS}/shared/private/planted')", THERE),
    Attempt("read the other's shared memory", "open('/dev/shm/secret').read()", THERE),
    Attempt("read the other's temporary files", "open('/tmp/secret').read()", THERE),
    Attempt("read the other's secrets", f"os.listdir('/etc/quintet/{OTHER}')", ROOT),
    Attempt("read the other's credentials", "open('/run/credentials/{other_unit}/SECRET_KEY').read()", THERE),
    Attempt("read the other's dumps", f"os.listdir('/var/lib/quintet/{OTHER}')", ROOT),
    # ---- the other app's sockets and databases
    Attempt("reach the other's Gunicorn", f"connect('{THEIRS}/current/run/gunicorn.sock')", ROOT),
    Attempt("reach the other's Daphne", f"connect('{THEIRS}/current/run/daphne.sock')", ROOT),
    Attempt("list the other's sockets", "os.listdir('{other_run}')", ROOT),
    Attempt("reach the other's Redis", f"connect('/run/redis-{OTHER}/redis.sock')", THERE),
    Attempt(
        "reach the other's database", f"import psycopg; psycopg.connect('host=/run/postgresql dbname={OTHER}')", THERE
    ),
    Attempt(
        "reach the other's database by its name",
        f"import psycopg; psycopg.connect('host=/run/postgresql dbname={OTHER} user={OTHER}')",
        THERE,
    ),
    # ---- the other app's processes
    Attempt("read the other's environment of processes", "open('/proc/{other_pid}/environ').read()", ROOT),
    Attempt("read the other's command line", "open('/proc/{other_pid}/cmdline').read()", ROOT),
    Attempt("read the other's memory", "open('/proc/{other_pid}/mem', 'rb')", ROOT),
    Attempt("go through the other's root", "os.listdir('/proc/{other_pid}/root/run')", ROOT),
    Attempt("send the other a signal", "os.kill({other_pid}, 0)", ROOT),
    Attempt("trace the other", "checked(libc.ptrace(0x4206, {other_pid}, 0, 0))", ROOT),
    # ---- more rights
    Attempt("become root", "os.setuid(0)", ROOT),
    Attempt("become root by su", "call('su', '--command', 'true', 'root')", ROOT),
    Attempt("become the other", "os.setuid({other_uid})", ROOT),
    Attempt("join Nginx's group", "os.setgroups([{www_data}])", ROOT),
    Attempt("leave a set-uid file", "{set_uid}", ROOT),
    Attempt(
        "give a file away", "p = '{writable}/given'; open(p, 'w'); os.chown(p, {other_uid}, -1); os.unlink(p)", ROOT
    ),
    Attempt("make a user namespace", "checked(libc.unshare(0x10000000))", ROOT),
    Attempt("make a mount namespace", "checked(libc.unshare(0x00020000))", ROOT),
    Attempt(
        "mount", "checked(libc.mount(b'none', b'/mnt', b'tmpfs', 0, None)); checked(libc.umount2(b'/mnt', 2))", ROOT
    ),
    Attempt("make a mount writable", "checked(libc.mount(None, b'/tmp', None, 0x1020, None))", ROOT),
    Attempt("change its root", "os.chroot('/')", ROOT),
    Attempt("bind a port of the system", "s = socket.socket(); s.bind(('127.0.0.1', 81))", ROOT),
    Attempt("trace at all", "{trace}", ROOT),
    Attempt("make memory executable", "import mmap; mmap.mmap(-1, 4096, prot=7)", ROOT),
    Attempt("listen to the kernel", "socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)", ROOT),
    Attempt("raise its limit of memory", "open({limit_file}, 'r+')", ROOT),
    # ---- staying
    Attempt("plant a unit", "plant('/etc/systemd/system/planted.service')", ROOT),
    Attempt("plant a unit until the next boot", "plant('/run/systemd/system/planted.service')", ROOT),
    Attempt("plant a job of cron", "plant('/etc/cron.daily/planted')", ROOT),
    Attempt("plant a spool of at or cron", "os.mkdir('/var/spool/planted'); os.rmdir('/var/spool/planted')", ROOT),
    Attempt("plant a user", "open('/etc/passwd', 'a')", ROOT),
    Attempt("plant a command", "plant('/usr/local/bin/planted')", ROOT),
    Attempt("change the host command", "open('/usr/local/sbin/quintet', 'a')", ROOT),
    Attempt("plant a module of Nginx", "plant('/etc/nginx/modules-enabled/planted.conf')", ROOT),
    Attempt("start a unit over D-Bus", "call('systemctl', 'start', 'systemd-tmpfiles-clean.service')", ROOT),
    Attempt("run a unit over D-Bus", "call('systemd-run', '--wait', '--quiet', 'true')", ROOT),
    Attempt(
        "change the manager's environment",
        "call('systemctl', 'set-environment', 'PLANTED=1'); call('systemctl', 'unset-environment', 'PLANTED')",
        ROOT,
    ),
    # ---- reading on the host
    Attempt("read hashes of passwords", "open('/etc/shadow').read()", ROOT),
    Attempt("list keys", "os.listdir('/etc/ssl/private')", ROOT),
    Attempt("list root's home", "os.listdir('/root')", ROOT),
    Attempt("read Nginx's logs", "open('/var/log/nginx/access.log').read()", ROOT),
    Attempt("read PostgreSQL's files", "os.listdir(glob.glob('/var/lib/postgresql/*/')[0] + 'main')", ROOT),
    Attempt(
        "read the journal",
        "if not call('journalctl', '--quiet', '--lines=1', '--unit=nginx'): raise PermissionError",
        ROOT,
    ),
    Attempt("read of the kernel", "open('/proc/kallsyms').read()", ROOT),
]


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    came_through: bool
    said: str


def outcome(output: str) -> Outcome:
    """Read what the frame printed; raises AssertionError when the attempt itself is wrong."""
    how, error, text = json.loads(output)
    assert how in ("refused", "came through"), f"{error}: {text}"
    return Outcome(how == "came through", f"{error}: {text}".strip(": \n"))


def code(attempt: str) -> str:
    """Return the whole program of an attempt."""
    return FRAME.format(code=textwrap.indent(attempt, "    "))


def within(host: Host, app: str, program: str) -> str:
    """Run a program in a child of an app's Gunicorn worker and return its output."""
    answer: dict[str, Any] = Site(host, f"{app}.test").request("POST", "/intruder/run", body=program).json
    assert answer["output"], answer["error"]
    output: str = answer["output"]
    return output


def fill(attempt: str, places: dict[str, str]) -> str:
    """Put the places into an attempt."""
    for name, value in places.items():
        attempt = attempt.replace("{" + name + "}", value)
    return attempt


@pytest.fixture(scope="module", params=HOSTS, ids=lambda host: host.name)
def host(request: pytest.FixtureRequest) -> Host:
    """A host on which the other app has left something to read wherever it can write."""
    host: Host = request.param
    paths = [f"/srv/{OTHER}/shared/private/secret", "/dev/shm/secret", "/tmp/secret"]
    # As open as a file can be: the directories and namespaces must do.
    program = "import os\nos.umask(0)\n" + "".join(f"open({path!r}, 'w').write('secret')\n" for path in paths)
    within(host, OTHER, program + "print('done')")
    return host


@pytest.fixture(scope="module")
def places(host: Host) -> dict[str, str]:
    """What attempts are aimed at."""
    generation = host.current(OTHER)
    unit = f"gunicorn-{OTHER}@{generation}.service"
    writable = f"/srv/{APP}/shared/files"
    return {
        "other_unit": unit,
        "other_pid": host.run("systemctl", "show", "--property=MainPID", "--value", unit).strip(),
        "other_run": f"/run/quintet/{OTHER}/{generation}",
        "other_uid": host.run("id", "-u", OTHER).strip(),
        "www_data": host.run("id", "-g", "www-data").strip(),
        "own_python": host.run("readlink", "-f", f"/srv/{APP}/current/venv").strip() + "/pyvenv.cfg",
        "writable": writable,
        # Of either version of the kernel's control groups.
        "limit_file": "[*glob.glob('/sys/fs/cgroup/memory/*/memory.limit_in_bytes'), *glob.glob('/sys/fs/cgroup/*/memory.max')][0]",
        "set_uid": f"p = '{writable}/' + str(os.getuid()); open(p, 'w'); os.chmod(p, 0o4755); os.unlink(p)",
        "trace": (
            "child = subprocess.Popen(['sleep', '5'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)\n"
            "checked(libc.ptrace(0x4206, child.pid, 0, 0)); child.kill()"
        ),
    }


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.what)
def test_an_intruder_cannot(attempt: Attempt, host: Host, places: dict[str, str]) -> None:
    program = code(fill(attempt.code, places))
    tried = outcome(within(host, APP, program))
    assert not tried.came_through, f"{attempt.what} came through"
    control = host.run("python3", "-c", program) if attempt.control == ROOT else within(host, OTHER, program)
    assert outcome(control).came_through, f"{attempt.control} is refused, too: {outcome(control).said}"


def test_an_intruder_has_no_group_but_its_own_and_no_power(host: Host) -> None:
    program = "import os; print(sorted(set(os.getgroups()) | {os.getgid()})); print(open('/proc/self/status').read())"
    groups, _, rest = within(host, APP, program).partition("\n")
    assert json.loads(groups) == [int(host.run("id", "-g", USER))]
    status = dict(line.split(":", 1) for line in rest.splitlines() if ":" in line)
    assert {
        name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    } == dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0)
    assert (status["NoNewPrivs"].strip(), status["Seccomp"].strip()) == ("1", "2")


# What must hold where the sandbox was loosened, too: rights of files and directories.
RIGHTS = [
    "read the other's source",
    "list the other's environment",
    "list the other's uploads",
    "write the other's uploads",
]
RIGHTS += ["read the other's private files", "read the other's secrets", "read the other's credentials"]
RIGHTS += [
    "reach the other's Gunicorn",
    "reach the other's Daphne",
    "reach the other's Redis",
    "list the other's sockets",
]
RIGHTS += ["add to its source", "lead current elsewhere", "write into the next build's cache", "read Nginx's logs"]


@pytest.mark.parametrize("what", RIGHTS)
def test_the_user_alone_cannot_either(what: str, host: Host, places: dict[str, str]) -> None:
    (attempt,) = (one for one in ATTEMPTS if one.what == what)
    tried = outcome(host.run("python3", "-c", code(fill(attempt.code, places)), user=USER))
    assert not tried.came_through, f"{what} came through"
