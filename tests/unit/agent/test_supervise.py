"""The supervisor with real children: small programs that die, exit with an error, or do not stop."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from l7proxy.agent.ready_file import ReadyFile
from l7proxy.agent.supervise import Child, agent, keep_running, worker
from l7proxy.errors import ConfigError
from l7proxy.setting_definitions import Settings, WorkerSettings, parse
from l7proxy.settings.origin import Origin


def program(path: Path, name: str, text: str) -> Child:
    """A child that first appends a line with its pid to its log."""
    file = path / f"{name}.py"
    log = path / f"{name}.log"
    start = f"import os, signal, sys, time\nopen({str(log)!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
    file.write_text(start + textwrap.dedent(text))
    return Child(name, (sys.executable, "-S", "-E", str(file)))


def pids(path: Path, name: str) -> list[int]:
    log = path / f"{name}.log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


async def eventually(holds: Callable[[], bool], seconds: float = 10) -> None:
    for _ in range(int(seconds * 100)):
        if holds():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to that")


SLEEPS = "time.sleep(60)"
STARTED = "open(__file__.replace('.py', '.ready'), 'w').close()\n"


async def run(*wanted: Child, grace: float = 5.0) -> None:
    await keep_running(wanted, grace=grace, first_pause=0.02, last_pause=0.05, lived=0.5)


async def test_who_dies_is_started_again_and_all_end_by_a_signal(tmp_path: Path) -> None:
    dies = program(tmp_path, "dies", "sys.exit(1)")
    stays = program(tmp_path, "stays", SLEEPS)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(dies, stays), name="run")
        await eventually(lambda: len(pids(tmp_path, "dies")) >= 4 and len(pids(tmp_path, "stays")) == 1)
        (pid,) = pids(tmp_path, "stays")
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: len(pids(tmp_path, "stays")) == 2)
        os.kill(os.getpid(), signal.SIGTERM)
    assert not any(alive(pid) for pid in (*pids(tmp_path, "dies"), *pids(tmp_path, "stays")))


async def test_the_child_around_the_others_is_stopped_when_they_have_ended(tmp_path: Path) -> None:
    ends = "signal.signal(signal.SIGTERM, lambda *_: (time.sleep({}), open({!r}, 'a').write({!r}), sys.exit(0)))\n"
    order = str(tmp_path / "order")
    around = program(tmp_path, "agent", f"{ends.format(0, order, 'agent')}{STARTED}{SLEEPS}")
    inside = program(tmp_path, "worker", f"{ends.format(0.3, order, 'worker ')}{STARTED}{SLEEPS}")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(keep_running([inside], around=around, grace=5), name="run")
        await eventually(lambda: {path.name for path in tmp_path.glob("*.ready")} == {"agent.ready", "worker.ready"})
        os.kill(os.getpid(), signal.SIGTERM)
    assert Path(order).read_text() == "worker agent"


async def test_a_child_that_cannot_start_ends_everything_and_says_so(tmp_path: Path) -> None:
    refuses = program(tmp_path, "agent", "sys.exit(2)")
    stays = program(tmp_path, "stays", SLEEPS)
    with pytest.raises(ExceptionGroup) as caught:
        await run(stays, refuses)
    (error,) = caught.value.exceptions
    assert isinstance(error, ConfigError)
    assert "the agent cannot start" in str(error)
    assert not any(alive(pid) for pid in pids(tmp_path, "stays"))


async def test_a_child_that_once_lived_is_tried_again_whatever_it_says(tmp_path: Path) -> None:
    moody = program(
        tmp_path,
        "moody",
        f"time.sleep(0.8 if len(open({str(tmp_path / 'moody.log')!r}).readlines()) == 1 else 0)\nsys.exit(2)",
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(moody), name="run")
        await eventually(lambda: len(pids(tmp_path, "moody")) >= 3)
        os.kill(os.getpid(), signal.SIGINT)


async def test_a_child_that_will_not_end_is_killed_after_the_grace(tmp_path: Path) -> None:
    stubborn = program(
        tmp_path, "stubborn", "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nopen(sys.argv[0] + '.up', 'w')\n" + SLEEPS
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(stubborn, grace=0.3), name="run")
        await eventually((tmp_path / "stubborn.py.up").exists)
        began = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
    assert 0.2 < time.monotonic() - began < 5
    assert not any(alive(pid) for pid in pids(tmp_path, "stubborn"))


async def test_a_second_signal_reaches_the_children_too(tmp_path: Path) -> None:
    counts = program(
        tmp_path,
        "counts",
        """
        got = []
        signal.signal(signal.SIGTERM, lambda number, frame: got.append(number))
        signal.signal(signal.SIGINT, lambda number, frame: got.append(number))
        open(sys.argv[0] + ".up", "w")
        while len(got) < 2:
            time.sleep(0.01)
        open(sys.argv[0] + ".got", "w").write(str(got))
        """,
    )
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(counts), name="run")
        await eventually((tmp_path / "counts.py.up").exists)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)
    assert (tmp_path / "counts.py.got").read_text() == "[15, 2]"


READY = "while not os.path.exists(sys.argv[0] + '.go'): time.sleep(0.01)\nos.write(int(sys.argv[1]), b'x')\n" + SLEEPS


async def test_the_ready_file_exists_while_every_child_is_ready(tmp_path: Path) -> None:
    file = tmp_path / "ready"
    file.touch()  # as a supervisor that was killed leaves it
    children = [replace(program(tmp_path, name, READY), says_when_ready=True) for name in ("one", "two")]
    ready = ReadyFile(file, [child.name for child in children])
    assert not file.exists()
    async with asyncio.TaskGroup() as tasks:
        running = keep_running(children, grace=5, ready=ready, first_pause=0.02, last_pause=0.05, lived=0.5)
        tasks.create_task(running, name="run")
        (tmp_path / "one.py.go").touch()
        await eventually(lambda: bool(pids(tmp_path, "one") and pids(tmp_path, "two")))
        assert not file.exists()
        (tmp_path / "two.py.go").touch()
        await eventually(file.exists)
        (tmp_path / "one.py.go").unlink()
        os.kill(pids(tmp_path, "one")[0], signal.SIGKILL)
        await eventually(lambda: not file.exists())
        (tmp_path / "one.py.go").touch()
        await eventually(file.exists)
        os.kill(os.getpid(), signal.SIGTERM)
        await eventually(lambda: not file.exists())


def test_a_ready_file_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"--ready-file: .*file/ready: Not a directory"):
        ReadyFile(tmp_path / "file" / "ready", ["one"])


def test_children_do_not_outlive_a_killed_supervisor(tmp_path: Path) -> None:
    child = program(tmp_path, "child", SLEEPS)
    script = (
        "import asyncio\nfrom l7proxy.agent.supervise import Child, keep_running\n"
        f"asyncio.run(keep_running([Child('child', {child.argv!r})], grace=1))\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", script])
    try:
        deadline = time.monotonic() + 20
        while not pids(tmp_path, "child") and time.monotonic() < deadline:
            time.sleep(0.02)
        (pid,) = pids(tmp_path, "child")
    finally:
        supervisor.kill()
        supervisor.wait()
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_children_get_their_settings_as_one_line() -> None:
    settings = Settings(source="/m", node="n1", run_dir=Path("/run/x"), drain=1.5)
    origin = Origin(file="/c.yaml", flags={"drain": "1.5"})
    program, (line, second) = agent(settings, origin).argv[1:4], agent(settings, origin).argv[4:]
    assert program == ("-P", "-m", "l7proxy.agent")
    assert parse(line, Settings) == settings
    assert Origin.parse(second) == origin
    *program_of_worker, line, index, changes = worker(settings, 3).argv[1:]
    assert changes == "0"
    assert program_of_worker == ["-P", "-m", "l7proxy.proxy"]
    assert (parse(line, WorkerSettings), index) == (settings.of_workers, "3")
    assert "/m" not in line


def test_the_supervisor_needs_neither_kernel_tables_nor_policies() -> None:
    code = "import sys; import l7proxy.agent.supervise; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(found.stdout.split())
    assert not loaded & {
        "typer",
        "rich",
        "pyroute2",
        "yaml",
        "uvloop",
        "tproxy_rules",
        "l7proxy.policy",
        "l7proxy.cluster",
    }


def test_a_module_in_the_current_directory_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('imported from the current directory')")
    argv = [*worker(Settings(node="n1", run_dir=tmp_path), 0).argv[:3], "l7proxy.setting_definitions"]
    found = subprocess.run(
        [*argv[:3], "l7proxy.setting_definitions"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stderr) == (0, "")
