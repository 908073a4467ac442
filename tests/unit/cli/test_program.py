"""The program as a whole: start-up, help, errors, exit codes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from l7proxy.cli.main import app, invoke
from tests.unit.cli.conftest import Run

COMMANDS = (
    *("run", "agent", "proxy", "cleanup", "observe", "status", "lab"),
    *("endpoint list", "endpoint get", "identity list", "service list"),
    *("policy list", "policy get", "policy validate", "policy trace"),
)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(run: Run, command: str) -> None:
    found = run(*command.split(), "--help")
    assert (found.returncode, found.stderr) == (0, "")
    assert "Usage: l7proxy" in found.stdout


@pytest.mark.parametrize("command", ["observe", "status", "run", "policy validate", "policy trace", "policy get"])
def test_help_teaches_with_examples(command: str) -> None:
    found = CliRunner().invoke(app, [*command.split(), "--help"])
    assert found.exit_code == 0
    assert f"\n  l7proxy {command}" in found.output


def test_the_version_is_told(process: Run) -> None:
    assert process("--version").stdout.startswith("l7proxy 0.")


@pytest.mark.parametrize(
    "command", ["nosuch", "policy nosuch", "endpoint get", "policy validate", "status --nosuch", "status x"]
)
def test_wrong_use_is_exit_code_2(run: Run, command: str) -> None:
    found = run(*command.split())
    assert (found.returncode, found.stdout) == (2, "")
    assert "Error: " in found.stderr


def test_help_needs_none_of_the_rooms() -> None:
    """Everyone who types a command waits for what `--help` imports."""
    code = "import sys; from l7proxy.cli import main; main.invoke(['--help']); print(*sys.modules, file=sys.stderr)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(found.stderr.split())
    heavy = {
        "asyncio",
        "uvloop",
        "yaml",
        "pyroute2",
        "h11",
        "rich",
        "l7proxy.agent.run",
        "l7proxy.proxy",
        "l7proxy.lab",
    }
    assert not loaded & heavy


@pytest.mark.parametrize(
    ("command", "config", "said"),
    [
        ("run", "no_such_setting: 1\n", "no_such_setting"),
        ("agent", "workers: many\n", "workers"),
        ("proxy", "mark_proxy: 3\n", "mark_proxy"),
        ("cleanup", "a: [\n", "config.yaml"),
    ],
)
def test_a_wrong_configuration_is_named(process: Run, tmp_path: Path, command: str, config: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(config)
    found = process(command, "--config", str(tmp_path / "config.yaml"))
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert said in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--backend ebpf", "backend"),
        ("--refuse maybe", "refuse"),
        ("--mark-proxy blue", "--mark-proxy"),
        ("--mark-proxy 0x3", "--mark-proxy"),
        ("--workers 0", "--workers"),
        ("--proxy-port 70000", "--proxy-port"),
        ("--config /nosuch/config.yaml", "/nosuch/config.yaml"),
        ("--source /nosuch/manifests", "/nosuch/manifests"),
    ],
)
def test_a_wrong_flag_is_named(process: Run, flags: str, said: str) -> None:
    found = process("agent", *flags.split())
    assert found.returncode == 2
    assert said in found.stderr
    assert "Traceback" not in found.stderr


def test_an_error_of_ours_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(["status", "--run-dir", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("error: no agent at ")
