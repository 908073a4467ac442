"""Labs for tests, driven by the command line only, as a user would: with root, or in a user namespace.

Without either the tests are skipped with the reason; with CI set they fail instead.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import programs

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("nft", "iptables-restore", "ipset", "ip", "curl", "unshare")
programs.reach()


def need(*names: str) -> None:
    """Skips the test when these programs are missing; with CI set it fails instead."""
    if absent := programs.missing(names):
        unable(f"not installed: {', '.join(absent)}")


def unable(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def missing() -> str:
    """The reason why no lab can be started here; empty when one can."""
    if absent := programs.missing(TOOLS):
        return f"not installed: {', '.join(absent)}"
    if os.geteuid() == 0:
        return ""
    tried = subprocess.run(["unshare", "--user", "--map-root-user", "--net", "true"], capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"no root, and no user namespaces: {tried.stderr.strip()}"


@pytest.fixture(scope="session", autouse=True)
def able() -> None:
    if reason := missing():
        unable(reason)


class Cluster:
    """One lab by its name. Every method runs a command line."""

    def __init__(self, name: str) -> None:
        self.name = name

    @staticmethod
    def argv(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "l7proxy.cli.main", "lab", *arguments]

    def run(
        self, command: str, *arguments: str, check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.argv(command, "--name", self.name, *arguments),
            input=stdin, capture_output=True, text=True, cwd=ROOT, timeout=120,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"lab {command} {arguments}: {done.stdout}{done.stderr}"
        return done

    def exec(self, pod: str, *command: str) -> subprocess.CompletedProcess[str]:
        return self.run("exec", pod, "--", *command, check=False)

    def curl(self, pod: str, *arguments: str) -> str:
        """The status code, or `exit N` when curl got none."""
        done = self.exec(
            pod, "curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", "--noproxy", "*", *arguments
        )
        return done.stdout if done.returncode == 0 else f"exit {done.returncode}"

    def talk(self, pod: str, script: str) -> subprocess.Popen[str]:
        """A Python script in a pod that writes one line of output for each line of input."""
        return subprocess.Popen(
            self.argv("exec", "--name", self.name, pod, "--", sys.executable, "-u", "-c", script),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def apply(self, manifest: str, directory: Path) -> None:
        file = directory / "manifest.yaml"
        file.write_text(manifest)
        self.run("apply", "-f", str(file))

    def delete(self, manifest: str, directory: Path) -> None:
        file = directory / "manifest.yaml"
        file.write_text(manifest)
        self.run("delete", "-f", str(file))

    def agent(self, node: str) -> dict[str, Any]:
        """`l7proxy status` of a node."""
        resources = json.loads(self.run("status", "-o", "json", check=False).stdout)
        run_dir = Path(resources["directory"]) / "nodes" / node / "run"
        done = self.exec(
            f"node/{node}", sys.executable, "-m", "l7proxy.cli.main", "status", "-o", "json", "--run-dir", str(run_dir)
        )
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def flows(self, node: str, *arguments: str) -> list[dict[str, Any]]:
        resources = json.loads(self.run("status", "-o", "json", check=False).stdout)
        run_dir = Path(resources["directory"]) / "nodes" / node / "run"
        done = self.exec(
            f"node/{node}", sys.executable, "-m", "l7proxy.cli.main", "observe", "--run-dir", str(run_dir),
            "--last", "5000", "-o", "jsonpb", *arguments,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["flow"] for line in done.stdout.splitlines() if '"flow"' in line]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """The demo's cluster, up once for a module."""
    lab = Cluster(f"t{os.getpid()}")
    lab.run("up")
    try:
        yield lab
    finally:
        lab.run("down")
