"""What a cluster shows of a failure, kept before the cluster is removed."""

from __future__ import annotations

import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.kube.handle import ROOT, CommandFailedError, Handle

DIRECTORY: Final = ROOT / "build" / "test-kube-logs"
SHOWN: Final = {
    "nodes-and-pods.txt": ("get", "nodes,pods", "-A", "-o", "wide"),
    "events.txt": ("get", "events", "-A", "--sort-by=.lastTimestamp"),
    "policies.yaml": ("get", "cnp,ccnp", "-A", "-o", "yaml"),
}


def keep(cluster: Handle) -> Path:
    """Copy the logs of all daemons and containers, and what kubectl shows, to a directory, which is returned."""
    directory = DIRECTORY / cluster.cluster.name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for machine in cluster.cluster.machines:
        for source in (machine.data / "logs", machine.data / "var-log" / "pods"):
            with suppress(OSError, shutil.Error):  # what is there of a broken cluster
                shutil.copytree(source, directory / machine.name / source.name)
    if cluster.cluster.kubeconfig.exists():
        for name, command in SHOWN.items():
            (directory / name).write_text(_shown(cluster, *command))
    return Path(os.path.relpath(directory))


def _shown(cluster: Handle, *command: str) -> str:
    try:
        return cluster.kubectl(*command, "--request-timeout=5s", timeout=20)
    except (CommandFailedError, subprocess.TimeoutExpired) as error:
        return f"{error}\n"
