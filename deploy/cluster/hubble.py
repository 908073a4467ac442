"""The stock `hubble` and Hubble Relay, for tests.

`python -m deploy.cluster.hubble` builds them and prints their directory. They are made from Cilium's Go module, at the
version of `go/hubble/go.mod`, and kept with the parts of the cluster. No cluster needs them, so `make cluster` builds
neither. The first build takes about seven CPU minutes.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from deploy.cluster import images, parts
from deploy.image import oci

MODULE: Final = "github.com/cilium/cilium"
SOURCES: Final = parts.GO_DIRECTORY / "hubble"
PROGRAMS: Final = ("hubble", "hubble-relay")
RELAY_IMAGE: Final = "localhost/hubble-relay"
"""Without its tag, which is the version."""


def version() -> str:
    return parts.version_of(MODULE, (SOURCES / "go.mod").read_text())


def recipe() -> parts.Recipe:
    """A directory with both programs."""
    stamps = {f"{MODULE}/hubble/pkg.Version": f"v{version()}", f"{MODULE}/pkg/version.ciliumVersion": version()}
    flags = " ".join(["-s", "-w", *(f"-X {variable}={value}" for variable, value in stamps.items())])

    def make(directory: Path) -> None:
        parts.check_go()
        how = ["-v", "-mod=readonly", "-trimpath", "-ldflags", flags, "-o", f"{directory}/"]
        packages = [f"{MODULE}/{name}" for name in PROGRAMS]
        parts.build("hubble", ["go", "build", "-C", str(SOURCES), *how, *packages])

    made_from = [(SOURCES / name).read_bytes() for name in ("go.mod", "go.sum")]
    return parts.Recipe("hubble", version(), (*made_from, flags.encode()), make)


def relay_image() -> tuple[str, Path]:
    """(name, OCI archive) of an image with Relay where the stock image has it."""
    name = f"{RELAY_IMAGE}:{version()}"
    programs = recipe().kept()

    def make(directory: Path) -> None:
        binaries = directory / "root" / "usr" / "bin"
        binaries.mkdir(parents=True)
        shutil.copy2(programs / "hubble-relay", binaries)
        config: dict[str, object] = {"Entrypoint": ["/usr/bin/hubble-relay"], "Env": [images.PATH]}
        oci.write_archive(directory / images.ARCHIVE, name, [directory / "root"], config)
        shutil.rmtree(directory / "root")

    image = parts.Recipe("image-hubble-relay", version(), (name.encode(), programs.name.encode()), make)
    return name, image.kept() / images.ARCHIVE


if __name__ == "__main__":
    print(recipe().kept())
