"""containerd on a node, and the images in it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Final

from deploy.cluster import images, machine, shell
from deploy.cluster.parts import Parts
from deploy.cluster.plan import Machine
from l7proxy.errors import ConfigError

SOCKET: Final = "/run/containerd/containerd.sock"
CNI_PLUGINS: Final = "/opt/cni/bin"
CNI_CONFIGURATION: Final = "/etc/cni/net.d"
_NAMESPACE: Final = "k8s.io"
_STARTS_IN: Final = 30.0


def configuration() -> str:
    """config.toml, version 2: containerd 1.x reads it, and 2.x converts it."""
    return f"""version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  restrict_oom_score_adj = true  # where this machine may not lower it (no CAP_SYS_RESOURCE)
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{CNI_CONFIGURATION}"
"""


def start(node: Machine, parts: Parts) -> None:
    """Start containerd and wait until it answers."""
    file = node.data / "containerd.toml"
    file.write_text(configuration())
    program = parts.debian / "usr/bin/containerd"
    machine.start(node, "containerd", [program, "--config", file], path=parts.runtime_path)
    _wait(node, parts)


def _wait(node: Machine, parts: Parts) -> None:
    deadline = time.monotonic() + _STARTS_IN
    while True:
        try:
            _ctr(node, parts, "version")
        except ConfigError:
            if time.monotonic() > deadline:
                machine.check_running(node, "containerd")
                raise
            time.sleep(0.1)
        else:
            return


def _ctr(node: Machine, parts: Parts, *arguments: str) -> str:
    return machine.run(node, [parts.debian / "usr/bin/ctr", "--namespace", _NAMESPACE, *arguments])


def load(node: Machine, parts: Parts, archives: Iterable[Path]) -> None:
    """Import OCI archives. ConfigError if one cannot be read."""
    for archive in archives:
        command: list[str | Path] = [parts.debian / "usr/bin/ctr", "--namespace", _NAMESPACE, "images", "import", "-"]
        with _opened(archive) as content:
            done = subprocess.run(
                machine.entering(node, command), stdin=content, capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise ConfigError(f"{archive}: cannot be imported on {node.name}:\n{shell.tail(done.stderr)}")


def _opened(archive: Path) -> BinaryIO:
    try:
        return archive.open("rb")
    except OSError as error:
        raise ConfigError(f"{archive}: cannot be read ({error.strerror}): name an OCI archive") from error
