"""The images of a cluster, made on this machine, without any image registry, as OCI archives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from deploy.cluster import parts
from deploy.cluster.parts import Parts
from deploy.image import oci

PAUSE: Final = "localhost/pause:1"
COREDNS: Final = "localhost/coredns:1"
NETSHOOT: Final = "localhost/netshoot:1"
"""A pod to try the network from, with the tools of nicolaka/netshoot that tests need."""
NETSHOOT_PACKAGES: Final = (
    "bind9-dnsutils",
    "conntrack",
    "curl",
    "iproute2",
    "iptables",
    "iputils-ping",
    "jq",
    "libpython3-stdlib",
    "netcat-openbsd",
    "nftables",
    "procps",
    "python3-minimal",
    "tcpdump",
)
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ARCHIVE: Final = "image.tar"


def built() -> tuple[Path, ...]:
    """The archives that `make image` has left in this checkout."""
    return tuple(sorted((Path(__file__).parents[2] / "build").glob("*.oci.tar")))


def ready(made: Parts) -> tuple[Path, ...]:
    """The archives of pause, CoreDNS and netshoot; makes those that are missing."""
    return (
        _of_program(PAUSE, made.pause, {"Entrypoint": ["/pause"]}),
        _of_program(COREDNS, made.coredns, {"Entrypoint": ["/coredns"]}),
        _netshoot(made),
    )


def _of_program(name: str, program: Path, config: dict[str, object]) -> Path:
    """An image that holds one static program."""

    def make(directory: Path) -> None:
        root = directory / "root"
        root.mkdir()
        shutil.copy2(program, root / program.name)
        oci.write_archive(directory / ARCHIVE, name, [root], config)
        shutil.rmtree(root)

    # The name of the program's directory has the digest of all it is made from.
    return parts.kept(f"image-{program.name}", "1", [name.encode(), program.parent.name.encode()], make) / ARCHIVE


def _netshoot(made: Parts) -> Path:
    def make(directory: Path) -> None:
        root = directory / "root.tar"
        parts.debian_root(root, NETSHOOT_PACKAGES, made)
        oci.write_archive(directory / ARCHIVE, NETSHOOT, [root], {"Cmd": ["sleep", "infinity"], "Env": [PATH]})
        root.unlink()

    return (
        parts.kept("image-netshoot", "1", [" ".join(NETSHOOT_PACKAGES).encode(), made.debian.name.encode()], make)
        / ARCHIVE
    )
