"""The programs and images that a cluster is made of, built once and kept outside the tree.

They are in `$XDG_CACHE_HOME/l7proxy/cluster` (else `~/.cache/…`), each in a directory whose name has its version and a
digest of all it is made from. A directory appears when it is complete, so an interrupted build leaves none; Go's own
build cache makes the next try go on where the last one stopped. Nothing is installed on this machine.

Kubernetes, etcd, CoreDNS and helm are Go modules at the versions of `go/go.mod`. containerd, runc and the CNI plugins
are Debian's packages, unpacked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from deploy.cluster import lock, shell
from deploy.cluster.progress import say
from l7proxy.errors import ConfigError

GO_DIRECTORY: Final = Path(__file__).parent / "go"
KUBE_PROGRAMS: Final = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
)
DEBIAN_PACKAGES: Final = ("containerd", "runc", "containernetworking-plugins", "mmdebstrap")
GO_HOME: Final = "/usr/local/go/bin"
"""Where Go's own installation is. sudo leaves it out of PATH."""
_SAY_EVERY: Final = 20.0
"""Seconds between two lines about a build that is under way."""


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "l7proxy", "cluster")


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the programs are."""

    kube: Path
    """The directory of etcd, kubectl and all programs of Kubernetes."""
    pause: Path
    coredns: Path
    helm: Path
    debian: Path
    """The root of the unpacked packages."""

    @property
    def kubectl(self) -> Path:
        return self.kube / "kubectl"

    @property
    def runtime_path(self) -> tuple[Path, ...]:
        """Where containerd, its shim, runc and ctr are."""
        return (self.debian / "usr/bin", self.debian / "usr/sbin")

    @property
    def cni_plugins(self) -> Path:
        return self.debian / "usr/lib/cni"


def kept(name: str, version: str, made_from: Iterable[bytes], make: Callable[[Path], None]) -> Path:
    """The directory of a part; `make` fills a new one if it is not there yet."""
    digest = hashlib.sha256(b"\0".join(made_from)).hexdigest()[:10]
    directory = cache() / f"{name}-{version}-{digest}"
    if not directory.exists():
        with lock.exclusive(directory.with_name(f"{directory.name}.new")) as begun:
            _make(begun, directory, f"{name} {version}", make)
    return directory


def _make(begun: Path, directory: Path, what: str, make: Callable[[Path], None]) -> None:
    lock.empty(begun)
    if directory.exists():  # another command has made it while this one waited
        begun.rmdir()
        return
    say(f"{what}: making it")
    make(begun)
    begun.rename(directory)
    say(f"{what}: done")


def version_of(module: str, go_mod: str) -> str:
    """The version of a module in the text of go.mod, without `v`."""
    found = re.search(rf"^\s*{re.escape(module)} v(\S+)", go_mod, re.MULTILINE)
    if not found:
        raise ConfigError(f"go.mod does not name the module {module}")
    return found[1]


def ready() -> Parts:
    """All parts; builds and downloads what is missing. ConfigError names what this machine lacks."""
    go_mod = (GO_DIRECTORY / "go.mod").read_text()
    kubernetes = version_of("k8s.io/kubernetes", go_mod)
    debian = kept("debian", _debian_release(), [" ".join(DEBIAN_PACKAGES).encode()], _unpack_packages)
    pause = _go_part("pause", "1", "./pause", {})
    kube = _go_part("kube", kubernetes, "./kube", _kubernetes_stamps(kubernetes), KUBE_PROGRAMS)
    coredns = _go_part("coredns", version_of("github.com/coredns/coredns", go_mod), "./coredns", {})
    helm = _helm(version_of("helm.sh/helm/v4", go_mod))
    return Parts(kube=kube, pause=pause / "pause", coredns=coredns / "coredns", helm=helm / "helm", debian=debian)


def _helm(version: str) -> Path:
    stamps = {"helm.sh/helm/v4/internal/version.version": f"v{version}"}
    return _go_part("helm", version, "helm.sh/helm/v4/cmd/helm", stamps)


def _kubernetes_stamps(version: str) -> dict[str, str]:
    """The variables that Kubernetes' own build sets: what its programs report as their version."""
    major, minor, _ = version.split(".", 2)
    base = "k8s.io/component-base/version"
    return {
        f"{base}.gitVersion": f"v{version}",
        f"{base}.gitMajor": major,
        f"{base}.gitMinor": minor,
        f"{base}.gitTreeState": "clean",
        "k8s.io/client-go/pkg/version.gitVersion": f"v{version}",
    }


def _go_part(name: str, version: str, package: str, stamps: Mapping[str, str], links: Iterable[str] = ()) -> Path:
    """Build one program; `links`: further names for it."""
    sources = [GO_DIRECTORY / "go.mod", GO_DIRECTORY / "go.sum", *sorted((GO_DIRECTORY / name).glob("*.go"))]
    made_from = [path.read_bytes() for path in sources]
    flags = " ".join(["-s", "-w", *(f"-X {variable}={value}" for variable, value in stamps.items())])

    def make(directory: Path) -> None:
        check_go()
        _build(
            name,
            [
                "go",
                "build",
                "-v",
                "-mod=readonly",
                "-trimpath",
                "-ldflags",
                flags,
                "-o",
                f"{directory}/{name}",
                package,
            ],
        )
        for link in links:
            (directory / link).symlink_to(name)

    return kept(name, version, [*made_from, flags.encode(), package.encode()], make)


def check_go() -> None:
    """ConfigError if this machine has no Go, or one that is too old."""
    wanted = re.search(r"^go (\d+)\.(\d+)", (GO_DIRECTORY / "go.mod").read_text(), re.MULTILINE)
    assert wanted
    needs = f"the cluster's programs are built with Go {wanted[1]}.{wanted[2]} or newer"
    if not shutil.which("go", path=_go_environment()["PATH"]):
        raise ConfigError(f"{needs}, and `go` is not in PATH: install it, or add its directory to PATH")
    found = re.search(r"go(\d+)\.(\d+)", shell.run(["go", "version"], env=_go_environment()))
    if found and (int(found[1]), int(found[2])) < (int(wanted[1]), int(wanted[2])) and not _may_switch():
        raise ConfigError(f"{needs}, and {found[0]} is too old: install a newer one, or set GOTOOLCHAIN=auto")


def _go_environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "PATH": os.pathsep.join([os.environ.get("PATH", ""), GO_HOME])}


def _may_switch() -> bool:
    """True if this Go may download the version that go.mod asks for."""
    return shell.run(["go", "env", "GOTOOLCHAIN"], env=_go_environment()).strip() != "local"


def _build(name: str, command: list[str]) -> None:
    """Run `go build -v`, which names each package that it compiles, and say how far it is."""
    process = subprocess.Popen(
        ["nice", *command], cwd=GO_DIRECTORY, env=_go_environment(), stderr=subprocess.PIPE, text=True
    )
    assert process.stderr
    lines: list[str] = []
    reader = threading.Thread(target=_collect, args=(process.stderr, lines), name="go build")
    reader.start()
    try:
        _wait(name, process, lines)
    finally:
        process.terminate()
        reader.join()
    if process.wait():
        hint = (
            "\n  Go modules could not be downloaded: is there a network, is GOPROXY right?"
            if _no_network(lines)
            else ""
        )
        raise ConfigError(f"building {name} failed:\n{shell.tail(chr(10).join(lines))}{hint}")


def _collect(stream: IO[str], lines: list[str]) -> None:
    lines.extend(line.rstrip("\n") for line in stream)


def _wait(name: str, process: subprocess.Popen[str], lines: list[str]) -> None:
    while True:
        try:
            process.wait(_SAY_EVERY)
        except subprocess.TimeoutExpired:
            downloaded = sum(line.startswith("go: downloading") for line in lines)
            say(f"{name}: {len(lines) - downloaded} packages compiled, {downloaded} modules downloaded")
        else:
            return


def _no_network(lines: Iterable[str]) -> bool:
    signs = ("dial tcp", "no such host", "connection refused", "i/o timeout", "proxyconnect")
    return any(sign in line for line in lines for sign in signs)


def _debian_release() -> str:
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    return release.get("VERSION_CODENAME") or "unknown"


def _unpack_packages(directory: Path) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if not shutil.which(program):
            raise ConfigError(
                f"`{program}` not found: containerd and the CNI plugins are taken from Debian or Ubuntu packages"
            )
    downloads = directory / "packages"
    downloads.mkdir()
    command = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *DEBIAN_PACKAGES]
    try:
        shell.run(command, cwd=downloads)
    except ConfigError:
        say("apt-get update: the lists of packages are missing or old")
        shell.run(["apt-get", "-qq", "update"])
        shell.run(command, cwd=downloads)
    for package in downloads.glob("*.deb"):
        shell.run(["dpkg-deb", "--extract", package, directory])
    shutil.rmtree(downloads)


def debian_root(out: Path, packages: Iterable[str], parts: Parts) -> None:
    """A Debian root file system as a tar, with these packages and without documentation."""
    exclude = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale", "info")]
    started = time.monotonic()
    shell.run(
        [
            parts.debian / "usr/bin/mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            f"--include={','.join(packages)}",
            *exclude,
            _debian_release(),
            out,
        ],
        env={**os.environ, "PATH": f"{parts.debian / 'usr/bin'}:{os.environ.get('PATH', '')}"},
    )
    say(f"root file system with {len(tuple(packages))} packages: {time.monotonic() - started:.0f} s")
