"""The images of a cluster, made on this machine, without any image registry, as OCI archives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from deploy.cluster import parts
from deploy.cluster.parts import Parts, Recipe
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
    recipes = (
        _of_program(PAUSE, made.pause, {"Entrypoint": ["/pause"]}),
        _of_program(COREDNS, made.coredns, {"Entrypoint": ["/coredns"]}),
        netshoot(made.debian),
    )
    return tuple(each.kept() / ARCHIVE for each in recipes)


def _of_program(name: str, program: Path, config: dict[str, object]) -> Recipe:
    """Of an image that holds one static program."""

    def make(directory: Path) -> None:
        root = directory / "root"
        root.mkdir()
        shutil.copy2(program, root / program.name)
        oci.write_archive(directory / ARCHIVE, name, [root], config)
        shutil.rmtree(root)

    # The name of the program's directory has the digest of all it is made from.
    return Recipe(f"image-{program.name}", "1", (name.encode(), program.parent.name.encode()), make)


def netshoot(debian: Path) -> Recipe:
    """`debian`: the directory of that part."""

    def make(directory: Path) -> None:
        root = directory / "root.tar"
        parts.debian_root(root, NETSHOOT_PACKAGES, debian)
        oci.write_archive(directory / ARCHIVE, NETSHOOT, [root], {"Cmd": ["sleep", "infinity"], "Env": [PATH]})
        root.unlink()

    return Recipe("image-netshoot", "1", (" ".join(NETSHOOT_PACKAGES).encode(), debian.name.encode()), make)
