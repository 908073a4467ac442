"""The namespaces that make a machine: creating them, running programs in them, ending them.

All processes of a machine are in one PID namespace. When its first process ends, the kernel kills the others: nothing
outlives a machine. The network namespace has a name, is created first and removed last, so what a killed command left
is found by it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

from deploy.cluster import cgroups, shell
from deploy.cluster.plan import Machine
from l7proxy.errors import ConfigError
from l7proxy.lab import netns, processes

_TREE: Final = Path(__file__).resolve().parents[2]
_STARTS_IN: Final = 20.0
_ENDS_IN: Final = 30.0
_JOIN: Final = 'for group in $JOIN; do echo 0 >"$group/cgroup.procs" || exit 1; done; unset JOIN; exec "$@"'


def create(machine: Machine, pause: Path, spec: Mapping[str, object]) -> None:
    """Make the namespaces and start their first process. `spec`: what `machine_init` reads."""
    netns.create(machine.netns)
    cgroups.create(machine)
    machine.log("").parent.mkdir(parents=True, exist_ok=True)
    namespaces = ("--mount", "--uts", "--ipc", "--pid", "--cgroup", "--fork", "--propagation", "slave")
    command = ["nsenter", f"--net={netns.path_of(machine.netns)}", "unshare", *namespaces, "--"]
    command += [sys.executable, "-P", "-m", "deploy.cluster.machine_init"]
    receiver, sender = os.pipe()
    document = {**spec, "ready": sender, "pause": str(pause), "hostname": machine.name}
    with os.fdopen(receiver, "rb", buffering=0) as answer:
        try:
            _start(machine, [*command, json.dumps(document)], machine.log("init"), {}, [sender])
        finally:
            os.close(sender)
        _wait_for(answer, machine)
    cgroups.settle(machine)


def _start(
    machine: Machine, command: Sequence[str], log: Path, env: Mapping[str, str], keep: Collection[int] = ()
) -> None:
    """Start a program in the machine's cgroups. It is not our child, so it need not be waited for."""
    join = " ".join(str(path) for path in cgroups.to_join(machine))
    with log.open("ab") as output:
        subprocess.run(
            ["setsid", "--fork", "sh", "-c", _JOIN, "sh", *command],
            env={**os.environ, **env, "JOIN": join, "PYTHONPATH": str(_TREE)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=keep,
            check=True,
        )


def _wait_for(answer: IO[bytes], machine: Machine) -> None:
    """The first process writes when it is ready. If it ends before, the pipe does, too."""
    readable, _, _ = select.select([answer], [], [], _STARTS_IN)
    if not readable or not answer.read(1):
        raise ConfigError(f"machine {machine.name} did not start:\n{shell.tail(machine.log('init').read_text())}")


def first_process(machine: Machine) -> int:
    """The pid, as the host sees it, of the first process of the machine. ConfigError if it does not run."""
    for process in _processes(machine):
        if _pids(process.pid)[1:] == [1]:
            return process.pid
    raise ConfigError(f"machine {machine.name} does not run: `make cluster-down`, then `make cluster`")


def is_running(machine: Machine) -> bool:
    try:
        first_process(machine)
    except ConfigError:
        return False
    return True


def _processes(machine: Machine) -> list[processes.Process]:
    return processes.inside(netns.inodes([machine.netns]))


def _pids(pid: int) -> list[int]:
    """The pids of a process, from this PID namespace to its own (NSpid in proc(5))."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return [int(number) for number in line.split()[1:]]
    return []


def find(machine: Machine, program: str) -> list[processes.Process]:
    """The processes of a program that runs in the machine itself, not in a pod."""
    return [
        process for process in _processes(machine) if len(_pids(process.pid)) == 2 and _name(process.pid) == program
    ]


def _name(pid: int) -> str:
    """The file name of the program; of `python -m package.module`, the module."""
    with contextlib.suppress(OSError):
        arguments = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        if "-m" in arguments[1:-1]:
            return arguments[arguments.index("-m") + 1].rpartition(".")[2]
        return Path(arguments[0]).name
    return ""


def entering(machine: Machine, command: Sequence[str | Path]) -> list[str]:
    """The command that runs a command in all namespaces of the machine, but in our own cgroups."""
    namespaces = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
    return ["nsenter", f"--target={first_process(machine)}", *namespaces, "--", *(str(part) for part in command)]


def run(machine: Machine, command: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    """The output of a program inside the machine."""
    return shell.run(entering(machine, command), env={**os.environ, **(env or {})})


def start(
    machine: Machine,
    program: str,
    command: Sequence[str | Path],
    *,
    path: Sequence[Path] = (),
    keep: Collection[int] = (),
) -> None:
    """Start a daemon inside the machine.

    `path`: directories to search first for the programs that it calls. `keep`: file descriptors that it inherits.
    """
    search = os.pathsep.join(
        [*(str(each) for each in path), os.environ.get("PATH", ""), "/usr/sbin:/sbin:/usr/bin:/bin"]
    )
    _start(machine, entering(machine, command), machine.log(program), {"PATH": search}, keep)


def check_running(machine: Machine, program: str) -> None:
    """ConfigError with the end of its log if a daemon has ended."""
    if not find(machine, program):
        raise ConfigError(f"{program} on {machine.name} has ended:\n{shell.tail(machine.log(program).read_text())}")


def destroy(machines: Collection[Machine]) -> bool:
    """End machines and remove everything of them but their data. True if there was anything."""
    groups = cgroups.left(machine.cgroup for machine in machines)
    names = [machine.netns for machine in machines if netns.path_of(machine.netns).exists()]
    _kill(names, groups)
    cgroups.remove(groups)
    for name in names:
        netns.remove(name)
    return bool(groups or names)


def _kill(names: Collection[str], groups: Sequence[Path]) -> None:
    inodes = netns.inodes(names)
    deadline = time.monotonic() + _ENDS_IN
    while pids := {process.pid for process in processes.inside(inodes)} | cgroups.processes(groups):
        if time.monotonic() > deadline:
            raise ConfigError(f"processes do not end: {sorted(pids)[:10]}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
