"""The agent as a whole: a failed start gives one line and exit code 2; and one real run from start to stop."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from l7proxy.agent.cleanup import cleanup
from l7proxy.agent.run import INTERFACES_EASE, Pace, run_agent
from l7proxy.errors import ConfigError
from l7proxy.process import exit_code
from l7proxy.setting_definitions import Settings
from tproxy_rules.backend import KernelError

POD = """apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1}
status: {podIP: 10.0.1.5}
"""


def test_what_the_operator_can_mend_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def both() -> None:
        raise BaseExceptionGroup("tasks", [ConfigError("first"), BaseExceptionGroup("inner", [KernelError("second")])])

    assert exit_code(both, ConfigError, KernelError) == 2
    assert capfd.readouterr().err == "error: first\nerror: second\n"
    assert exit_code(lambda: None, ConfigError) == 0


def test_a_bug_is_not_hidden(capfd: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise BaseExceptionGroup("tasks", [ConfigError("x"), ZeroDivisionError()])

    with pytest.raises(BaseExceptionGroup) as raised:
        exit_code(broken, ConfigError)
    assert [type(each) for each in raised.value.exceptions] == [ZeroDivisionError]
    assert capfd.readouterr().err == "error: x\n"
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0, ConfigError)


def test_one_error_alone_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    def alone() -> None:
        raise ConfigError("it")

    assert exit_code(alone, ConfigError) == 2
    assert capfd.readouterr().err == "error: it\n"


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.02), (0.004, 0.02), (0.1, 0.2), (3.0, 0.5)])
def test_rounds_for_interfaces_take_at_most_half_of_the_time(took: float, pause: float) -> None:
    """A starting pod waits for its round: so none is put off longer than that, nor ever for more than half a second."""
    assert Pace(*INTERFACES_EASE, lambda: took).pause == pause


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(kubeconfig="/none", node="n1"), "/none: no such file, and this is no pod of a cluster"),
        (Settings(source="/none", node="n1"), "source: /none: no such file or directory"),
    ],
)
def test_a_source_that_is_none(settings: Settings, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_agent(settings) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("module", ["l7proxy.cli.main", "l7proxy.agent.run", "l7proxy.proxy.worker"])
def test_the_client_of_the_api_server_is_imported_only_where_it_is_used(module: str) -> None:
    code = f"import sys, {module}; sys.exit(sum(name in sys.modules for name in ('kubernetes', 'aiohttp')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_run_directory_that_cannot_be(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert run_agent(Settings(source=str(tmp_path), node="n1", run_dir=tmp_path / "file" / "x")) == 2
    assert "run-dir" in capfd.readouterr().err


def test_cleanup_under_a_running_agent_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))
        agent.listen()
        with pytest.raises(ConfigError, match="an agent is running"):
            list(cleanup(Settings(node="n1", run_dir=tmp_path)))


IN_NAMESPACE = ("unshare", "--net", "bash", "-c", 'ip link set lo up; exec "$0" "$@"')


def script(path: Path, text: str, *, argv: tuple[str, ...] = IN_NAMESPACE) -> subprocess.CompletedProcess[str]:
    """Runs Python in a separate network namespace."""
    prelude = f"""
    import asyncio, json, os, signal, socket, sys, threading, time
    from pathlib import Path
    from urllib.request import urlopen
    from l7proxy.agent.cleanup import cleanup
    from l7proxy.agent.run import run_agent
    from l7proxy.setting_definitions import Settings
    path = Path({str(path)!r})
    PROBES = ("livez", "readyz")
    settings = Settings(
        source=str(path / "src"), node="n1", run_dir=path / "run", cni_results=path / "cni", backend="nftables",
        state_dir=path / "state"
    )
    """
    code = textwrap.dedent(prelude) + textwrap.dedent(text)
    return subprocess.run([*argv, sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for a network namespace")


@pytest.mark.sandbox
@needs_root
def test_one_agent_from_start_to_stop_and_what_it_leaves(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.yaml").write_text(POD)
    done = script(
        tmp_path,
        """
        def ask(method):
            with socket.socket(socket.AF_UNIX) as s:
                s.connect(str(path / "run" / "agent.sock"))
                s.sendall(json.dumps({"method": method}).encode() + b"\\n")
                return json.loads(s.makefile().readline())

        def user():
            try:
                for _ in range(500):
                    time.sleep(0.02)
                    try:
                        status = ask("status")
                    except OSError:
                        continue
                    if status["enforced_revision"] == 1:
                        break
                print(json.dumps(status))
                print(json.dumps(ask("endpoints")["endpoints"][0]["name"]))
                print(json.dumps(len(ask("policy")["policy"])))
                print(json.dumps([urlopen(f"http://127.0.0.1:9878/{path}").read().decode() for path in PROBES]))
                other = Settings(source=settings.source, node="n1", run_dir=settings.run_dir, backend="nftables")
                pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-c",
                    "import sys; from l7proxy.agent.run import run_agent; from l7proxy.settings.read import load; "
                    "from pathlib import Path; sys.exit(run_agent(load(Path(sys.argv[1]))))", str(path / "other.json")])
                print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        (path / "other.json").write_text(settings.dump())
        threading.Thread(target=user).start()
        print(json.dumps(run_agent(settings)))
        print(json.dumps(sorted(p.name for p in (path / "run").iterdir())))
        print(json.dumps("l7proxy" in os.popen("nft list tables").read()))
        (path / "state" / "objects").mkdir(parents=True)
        (path / "state" / "objects" / "Pod.jsonl").touch()
        print(json.dumps(list(cleanup(settings))))
        print(json.dumps("l7proxy" in os.popen("nft list tables; ip rule; ip route show table 7777").read()))
        """,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 10, done
    status, name, policies, probes, second, code, left, rules, undone, after = lines
    assert (status["node"], status["backend"], status["revision"]) == ("n1", "nftables", 1)
    assert status["source"]["detail"] == {"a.yaml": (tmp_path / "src" / "a.yaml").stat().st_mtime_ns}
    assert status["kernel"]["intact"]
    assert (name, policies) == ("web", 1)
    assert probes == ["ok\n", "ok\n"]
    assert second == 2
    assert "is in use by another l7proxy process" in done.stderr
    assert "Traceback" not in done.stderr
    assert (code, left) == (0, ["fence", "sysctls.json"])  # for the workers, for the next agent, for `cleanup`
    assert rules, "stopping opens nothing"
    assert undone[0] == "nftables: rules removed"
    assert "sysctl net.ipv4.tcp_migrate_req: 0 again" in undone
    assert undone[-1] == f"{tmp_path}/state: saved objects of 1 kinds removed"
    assert not after, "cleaning up leaves nothing"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["fence"]
    assert not any((tmp_path / "state").iterdir())


@pytest.mark.sandbox
@needs_root
def test_what_others_take_away_is_put_back_when_it_happens(tmp_path: Path) -> None:
    """The periodic check is an hour away."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.yaml").write_text(POD)
    done = script(
        tmp_path,
        """
        from l7proxy.agent.dataplane.reconciler import Reconciler

        def there():
            for _ in range(1000):
                time.sleep(0.02)
                if "seal" in os.popen("nft list chains 2>&1").read():
                    return True
            return False

        def user():
            try:
                print(json.dumps(there()))
                for removal in ("delete table inet l7proxy", "flush ruleset"):
                    os.system(f"nft add table inet other; nft {removal}")
                    print(json.dumps(there()))
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

        Reconciler.__init__.__kwdefaults__["check_every"] = 3600.0
        threading.Thread(target=user).start()
        print(json.dumps(run_agent(settings)))
        """,
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == [True, True, True, 0], done
    assert done.stderr.count("kernel rules were changed by another program: restored") == 2


@pytest.mark.sandbox
@needs_root
def test_without_privileges_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    nobody = (
        "setpriv",
        "--bounding-set=-net_admin",
        "--inh-caps=-net_admin",
        "--ambient-caps=-all",
        "unshare",
        "--net",
    )
    done = script(tmp_path, "sys.exit(run_agent(settings))", argv=nobody)
    assert done.returncode == 2, done
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


@pytest.mark.sandbox
@needs_root
def test_without_nft_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    done = script(tmp_path, "os.environ['PATH'] = '/nowhere'\nsys.exit(run_agent(settings))")
    assert done.returncode == 2, done
    assert "nft" in done.stderr
    assert "Traceback" not in done.stderr
