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
_ANSWERS_IN: Final = 40.0
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


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one part is made, and the directory of the finished one."""

    name: str
    version: str
    made_from: tuple[bytes, ...]
    make: Callable[[Path], None]
    """Fills an empty directory."""

    @property
    def directory(self) -> Path:
        digest = hashlib.sha256(b"\0".join(self.made_from)).hexdigest()[:10]
        return cache() / f"{self.name}-{self.version}-{digest}"

    @property
    def missing(self) -> bool:
        return not self.directory.exists()

    def kept(self) -> Path:
        """The directory of the part, which is made if it is not there yet."""
        directory = self.directory
        if self.missing:
            with lock.exclusive(directory.with_name(f"{directory.name}.new")) as begun:
                _make(begun, directory, f"{self.name} {self.version}", self.make)
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


@dataclass(frozen=True, slots=True)
class Recipes:
    """Of all parts."""

    debian: Recipe
    pause: Recipe
    kube: Recipe
    coredns: Recipe
    helm: Recipe

    @property
    def built_with_go(self) -> tuple[Recipe, ...]:
        return (self.pause, self.kube, self.coredns, self.helm)


def recipes() -> Recipes:
    go_mod = (GO_DIRECTORY / "go.mod").read_text()
    kubernetes, coredns, helm = (
        version_of(module, go_mod) for module in ("k8s.io/kubernetes", "github.com/coredns/coredns", "helm.sh/helm/v4")
    )
    helm_stamps = {"helm.sh/helm/v4/internal/version.version": f"v{helm}"}
    return Recipes(
        debian=Recipe("debian", debian_release(), (" ".join(DEBIAN_PACKAGES).encode(),), _unpack_packages),
        pause=_go_recipe("pause", "1", "./pause", {}),
        kube=_go_recipe("kube", kubernetes, "./kube", _kubernetes_stamps(kubernetes), KUBE_PROGRAMS),
        coredns=_go_recipe("coredns", coredns, "./coredns", {}),
        helm=_go_recipe("helm", helm, "helm.sh/helm/v4/cmd/helm", helm_stamps),
    )


def ready() -> Parts:
    """All parts; builds and downloads what is missing. ConfigError names what this machine lacks."""
    how = recipes()
    debian, pause, kube, coredns, helm = (
        each.kept() for each in (how.debian, how.pause, how.kube, how.coredns, how.helm)
    )
    return Parts(kube=kube, pause=pause / "pause", coredns=coredns / "coredns", helm=helm / "helm", debian=debian)


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


def _go_recipe(name: str, version: str, package: str, stamps: Mapping[str, str], links: Iterable[str] = ()) -> Recipe:
    """Builds one program; `links`: further names for it."""
    sources = [GO_DIRECTORY / "go.mod", GO_DIRECTORY / "go.sum", *sorted((GO_DIRECTORY / name).glob("*.go"))]
    flags = " ".join(["-s", "-w", *(f"-X {variable}={value}" for variable, value in stamps.items())])

    def make(directory: Path) -> None:
        check_go()
        options = ["-v", "-mod=readonly", "-trimpath", "-ldflags", flags]
        build(name, ["go", "build", *options, "-o", f"{directory}/{name}", package])
        for link in links:
            (directory / link).symlink_to(name)

    made_from = (*(path.read_bytes() for path in sources), flags.encode(), package.encode())
    return Recipe(name, version, made_from, make)


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


def check_modules() -> None:
    """ConfigError if Go cannot get modules: it asks for the versions of Kubernetes, as a build asks for its sources."""
    command = ["go", "list", "-m", "-versions", f"k8s.io/kubernetes@v{recipes().kube.version}"]
    try:
        shell.run(command, env=_go_environment(), cwd=Path("/"), seconds=_ANSWERS_IN)
    except ConfigError as error:
        raise ConfigError(str(error).replace("\n  |", ";")) from error


def _go_environment() -> dict[str, str]:
    return {**os.environ, "CGO_ENABLED": "0", "PATH": os.pathsep.join([os.environ.get("PATH", ""), GO_HOME])}


def _may_switch() -> bool:
    """True if this Go may download the version that go.mod asks for."""
    return shell.run(["go", "env", "GOTOOLCHAIN"], env=_go_environment()).strip() != "local"


def build(name: str, command: list[str]) -> None:
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


def debian_release() -> str:
    file = Path("/etc/os-release")
    text = file.read_text() if file.exists() else ""
    return dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', text, re.MULTILINE)).get("VERSION_CODENAME") or "unknown"


def _unpack_packages(directory: Path) -> None:
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


def debian_root(out: Path, packages: Iterable[str], debian: Path) -> None:
    """A Debian root file system as a tar, with these packages and without documentation."""
    exclude = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale", "info")]
    started = time.monotonic()
    shell.run(
        [
            debian / "usr/bin/mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            f"--include={','.join(packages)}",
            *exclude,
            debian_release(),
            out,
        ],
        env={**os.environ, "PATH": f"{debian / 'usr/bin'}:{os.environ.get('PATH', '')}"},
    )
    say(f"root file system with {len(tuple(packages))} packages: {time.monotonic() - started:.0f} s")
