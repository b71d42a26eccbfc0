"""The fork server of a split system: it has imported what a part needs, and forks.

What it forks shares the pages of all that, and is there at once. It is itself forked from the
supervisor, before there is a thread, a loop, a connection, or anything of the user's: so a fork is
what a new interpreter is that has imported Synchromesh. The user's code is imported by each process
for itself, as it is on disk then. Where code has changed that was imported before the fork, it
refuses. It ends with its supervisor, and what it has forked ends with it.
"""

from __future__ import annotations

import atexit
import encodings.idna  # noqa: F401  what resolves a name needs it: imported here, it is shared
import gc
import hashlib
import os
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from synchromesh.system.config.schema import SystemConfig
from synchromesh.system.host import process
from synchromesh.system.host.gaps import take_gaps
from synchromesh.system.host.loops import loop_factory
from synchromesh.system.supervise.children import die_with_parent
from synchromesh.system.supervise.forks import ForkServer
from synchromesh.system.supervise.messages import Exited, Forked, ForkRequest, NotForked

REQUEST_BYTES_MAX = 4096
HANDLES_MAX = 3

# Elsewhere a framework of the system may have threads, which a fork does not have.
TASKS = "/proc/self/task"

# A stop may reach all processes, as by a service manager: it goes on until its children have ended.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BLOCKED = (*_IGNORED, signal.SIGCHLD)


def start_fork_server(folder: Path, config: SystemConfig) -> ForkServer | None:
    """Fork the fork server off this process; None where there cannot be one.

    Before anything of the user's is imported, and before there is a loop.

    Args:
        folder: of the system; the parts run in it.
        config: what the parts need beside what each needs is imported too, and shared.
    """
    try:
        if len(os.listdir(TASKS)) > 1:
            return None  # something that every interpreter here imports has begun a thread
    except OSError:
        return None
    _import_for(config)
    files = _files()
    stamp, die = _stamp(files), die_with_parent()
    sys.path_importer_cache.clear()  # what is in the folders is looked up anew in each process
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sys.stdout.flush()
    sys.stderr.flush()
    take_gaps()
    # What there is now is never looked at again by the collector, which would write to it.
    gc.freeze()
    pid = os.fork()
    if pid:
        theirs.close()
        return ForkServer(pid, ours)
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        if die is not None:
            die()
        ours.close()
        _serve(theirs, files, stamp)
        code = process.main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:  # noqa: BLE001  whatever it is, a process ends with it
        traceback.print_exc()
    finally:
        _end(code)


def _import_for(config: SystemConfig) -> None:
    """Import what only some systems need, after all that each needs.

    What is imported together is together on pages, and of what a process does not touch it copies
    no page: so a service shares the gateway's modules, and has none of them.
    """
    loop_factory(config.system.loop)
    if config.gateway.app:
        import synchromesh.system.config.gateway_check
        import synchromesh.system.host.gateway_start
    if config.telemetry.otlp:
        import synchromesh.system.host.otlp_target  # noqa: F401


def _serve(control: socket.socket, files: str, stamp: bytes) -> None:
    """Fork what is asked for; return in a forked process only."""
    die = die_with_parent()
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: _report_ended(control))
    while True:
        request, handles, _, _ = socket.recv_fds(control, REQUEST_BYTES_MAX, HANDLES_MAX)
        if not request:
            _end(0)
        # An end is reported after what it is the end of; no signal is lost in the new process.
        signal.pthread_sigmask(signal.SIG_BLOCK, _BLOCKED)
        try:
            pid = 0 if (reason := _reason_against(files, stamp)) else os.fork()
        except OSError as error:
            pid, reason = 0, f"{error.strerror}"
        if not pid and not reason:
            if die is not None:
                die()
            control.close()
            handle = msgspec.json.decode(request, type=ForkRequest).handle
            return _settle(handles, handle)
        if pid:
            # Also in the new process, whichever comes first.
            with suppress(OSError):
                os.setpgid(pid, pid)
        for each in handles:
            os.close(each)
        _say(control, Forked(pid) if pid else NotForked(reason))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)


def _end(code: int) -> NoReturn:
    """End this process as an interpreter ends, but for the frames below: they are another's."""
    with suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _settle(handles: list[int], handle: int) -> None:
    """Make a forked process what a new interpreter is that was started with these handles."""
    os.setpgid(0, 0)
    link, log, *inherited = handles
    for source, target in ((link, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(link)
    os.close(log)
    if inherited and inherited[0] != handle:
        os.dup2(inherited[0], handle)
        os.close(inherited[0])
    for number in _BLOCKED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _BLOCKED)
    gc.enable()


def _report_ended(control: socket.socket) -> None:
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            _say(control, Exited(ended[0], os.waitstatus_to_exitcode(ended[1])))


def _say(control: socket.socket, what: Forked | NotForked | Exited) -> None:
    # A supervisor that has gone is seen when the next request is read.
    with suppress(BrokenPipeError, ConnectionResetError):
        control.send(msgspec.json.encode(what))


def _reason_against(files: str, stamp: bytes) -> str:
    """Return why a fork would not be what a new interpreter is; "" where it would be."""
    if _stamp(files) != stamp:
        return (
            "code that was imported before the fork has changed since; restart the system to fork "
            "again"
        )
    return ""


def _files() -> str:
    """Return the paths of all modules, each ended by a zero byte.

    One string of their own: who looks at a module counts a reference, and so writes to the page it
    is on, which no fork before shares with the next one from then on.
    """
    paths = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    return "".join(f"{path}\0" for path in paths if path)


def _stamp(files: str) -> bytes:
    """Return what changes when the file of a module is replaced or changed, or is no more."""
    found = hashlib.blake2b(digest_size=16)
    for path in files.split("\0")[:-1]:
        try:
            stat = os.stat(path)
            found.update(b"%d %d %d\0" % (stat.st_ino, stat.st_mtime_ns, stat.st_size))
        except OSError:
            found.update(b"\0")
    return found.digest()
