"""Reads what this machine is and has, for `preflight`. Changes nothing: what it tries is in namespaces of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from deploy.cluster import cgroups, images, parts, preflight
from deploy.cluster.plan import CLUSTERS, Cluster
from l7proxy.errors import ConfigError

_PATH: Final = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin:/sbin:/usr/bin:/bin"])
_TRIAL_ENDS_IN: Final = 20.0
_DOWNLOAD_ENDS_IN: Final = 40.0
_APT_HELPER: Final = Path("/usr/lib/apt/apt-helper")
_NAMESPACES: Final = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--fork", "--propagation", "private")


def check(cluster: Cluster) -> list[preflight.Finding]:
    """All that this cluster needs, with and without fault."""
    to_make = _to_make()
    places = preflight.disk_needed(CLUSTERS, parts.cache(), to_make)
    return preflight.findings(_facts(cluster, to_make, places), cluster, places)


def require(cluster: Cluster) -> None:
    """ConfigError that names all that is missing."""
    if wrong := preflight.faults(check(cluster)):
        raise ConfigError(preflight.complaint(wrong))


def _to_make() -> frozenset[str]:
    recipes = parts.recipes()
    kinds = {
        "go": any(each.missing for each in recipes.built_with_go),
        "packages": recipes.debian.missing or images.netshoot(recipes.debian.directory).missing,
    }
    return frozenset(kind for kind, missing in kinds.items() if missing)


def _facts(cluster: Cluster, to_make: frozenset[str], places: Iterable[Path]) -> preflight.Facts:
    root = os.geteuid() == 0
    programs = frozenset(name for name in preflight.PROGRAMS if shutil.which(name, path=_PATH))
    go_fault = _fault(parts.check_go) if "go" in to_make else ""
    with ThreadPoolExecutor() as pool:  # while the trials run
        modules = pool.submit(_fault, parts.check_modules if "go" in to_make and not go_fault else _nothing)
        packages = pool.submit(_fault, _check_packages if "packages" in to_make else _nothing)
        return preflight.Facts(
            root=root,
            programs=programs,
            kernel=kernel_version(os.uname().release),
            ipv6=Path("/proc/sys/net/ipv6").exists(),
            seccomp="\nSeccomp:" in Path("/proc/self/status").read_text(),
            kmsg_fault=_fault(_open_kmsg),
            cgroup_fault=_fault(cgroups.try_out) if root else "",
            controllers=cgroups.controllers(),
            memory=_free_memory(),
            disk={path: shutil.disk_usage(_existing(path)).free for path in places},
            failures=_failures(preflight.trials(cluster), programs) if root else {},
            to_make=to_make,
            go_fault=go_fault,
            modules_fault=modules.result(),
            packages_fault=packages.result(),
        )


def kernel_version(release: str) -> tuple[int, int]:
    """Parses the release of uname(2), such as `6.1.0-18-amd64`; (0, 0) if it has another form."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _nothing() -> None:
    """For what need not be checked."""


def _fault(checked: Callable[[], object]) -> str:
    """Empty if it goes well."""
    try:
        checked()
    except ConfigError as error:
        return str(error)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    return ""


def _open_kmsg() -> None:
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))


def _failures(trials: Mapping[str, preflight.Trial], programs: frozenset[str]) -> dict[str, str]:
    """Trial → its error, or an empty text. Without the namespaces nothing else can be tried."""
    if "unshare" not in programs:
        return {}
    first = {preflight.NAMESPACES: _failure(trials[preflight.NAMESPACES].script)}
    if first[preflight.NAMESPACES]:
        return first
    can = {name: trial for name, trial in trials.items() if not trial.program or trial.program in programs}
    return {name: _failure(trial.script) for name, trial in can.items()}


def _failure(script: str) -> str:
    command = ["unshare", *_NAMESPACES, "--", "sh", "-c", script]
    return failure_of(command, _TRIAL_ENDS_IN, env={**os.environ, "PATH": _PATH, "LC_ALL": "C"})


def failure_of(command: list[str], seconds: float, env: Mapping[str, str] | None = None) -> str:
    """The last lines that a failed command wrote; empty if it did not fail."""
    try:
        done = subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not done within {seconds:.0f} s"
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if not done.returncode:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip(" ^~\t")]
    return "; ".join(lines[-2:]) or f"exit code {done.returncode}"


def _check_packages() -> None:
    """Download the index of the first repository, as apt does it: by its proxies and its methods."""
    if not _APT_HELPER.exists():
        return
    wanted = ["apt-get", "indextargets", "--format", "$(REPO_URI)dists/$(RELEASE)/InRelease", "Created-By: Packages"]
    done = subprocess.run(wanted, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise ConfigError("apt has no source of packages")
    index = done.stdout.splitlines()[0]
    with tempfile.TemporaryDirectory() as scratch:
        options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=15"]
        command = [str(_APT_HELPER), *options, "download-file", index, f"{scratch}/InRelease"]
        if failure := failure_of(command, _DOWNLOAD_ENDS_IN):
            raise ConfigError(f"{index}: {failure}")


def _existing(path: Path) -> Path:
    """The path, or the nearest directory above it that exists."""
    return path if path.exists() else _existing(path.parent)


def _free_memory() -> int:
    """Bytes that programs can get: of the machine, and by the limits of our cgroups."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return min(int(found[1]) * 1024 if found else 0, cgroups.memory_left())
