"""A real cluster as tests see it: kubectl and helm, answers as text or JSON."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deploy.cluster import cluster as clusters
from deploy.cluster import machine
from deploy.cluster.parts import Parts
from deploy.cluster.plan import Cluster, Machine

ROOT: Final = Path(__file__).resolve().parents[2]


def name_of_this_checkout(prefix: str) -> str:
    """A name for a cluster that tests of another checkout do not use. `prefix`: at most 6 characters."""
    return prefix + hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:6]


class CommandFailedError(Exception):
    """kubectl or helm, or a command in a pod, ended with another code than 0. `code`: that code."""

    def __init__(self, command: Sequence[str], code: int, output: str) -> None:
        super().__init__(f"{' '.join(command)}: exit code {code}\n{output}")
        self.code = code


@dataclass(frozen=True, slots=True)
class Handle:
    """A cluster that is up."""

    cluster: Cluster
    parts: Parts

    @property
    def nodes(self) -> tuple[Machine, ...]:
        return self.cluster.nodes

    @property
    def environment(self) -> dict[str, str]:
        """For programs that look for `kubectl`, `helm` and KUBECONFIG themselves."""
        path = f"{self.parts.kube}:{self.parts.helm.parent}:{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig), "PATH": path}

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 120) -> str:
        return self._run([str(self.parts.kubectl), *arguments], stdin, timeout)

    def helm(self, *arguments: str, timeout: float = 300) -> str:
        return self._run([str(self.parts.helm), *arguments], None, timeout)

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *documents: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": documents}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listed))

    def exec(self, pod: str, *command: str, namespace: str = "default") -> str:
        """The output of a command in a pod, or in `ds/x`, `deploy/x`."""
        return self.kubectl("exec", "-n", namespace, pod, "--", *command)

    def in_node(self, node: Machine, *command: str) -> str:
        """The output of a command in all namespaces of a node."""
        return machine.run(node, command)

    def load(self, archive: Path) -> None:
        """Import an image into all nodes."""
        clusters.load(self.cluster, self.parts, [archive])

    def stop(self, where: str, program: str) -> None:
        clusters.stop(self.cluster, where, program)

    def kill(self, where: str, program: str) -> None:
        clusters.kill(self.cluster, where, program)

    def start(self, where: str, program: str) -> None:
        clusters.start(self.cluster, where, program)

    def _run(self, command: Sequence[str], stdin: str | None, timeout: float) -> str:
        done = subprocess.run(
            command,
            input=stdin,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if done.returncode:
            raise CommandFailedError([Path(command[0]).name, *command[1:]], done.returncode, done.stdout + done.stderr)
        return done.stdout


def eventually(holds: Callable[[], object], what: str, seconds: float = 60) -> None:
    """Ask until the answer is true. A command that fails counts as false."""
    deadline = time.monotonic() + seconds
    while True:
        problem = ""
        try:
            if holds():
                return
        except CommandFailedError as error:
            problem = f": {error}"
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s{problem}"
        time.sleep(0.2)
