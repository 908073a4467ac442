"""Where the API server is and as whom we ask: the pod's ServiceAccount or a kubeconfig, read by the Kubernetes client.

Tokens, client certificates and CA certificates are files that are replaced while the agent runs: `Login.changed` says
when, and `load` reads them again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml
from kubernetes.aio import client, config
from kubernetes.aio.config.incluster_config import SERVICE_HOST_ENV_NAME, InClusterConfigLoader

from l7proxy.errors import ConfigError

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")

Signature = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Access:
    """Which credentials to use.

    `kubeconfig`: path of a kubeconfig, or several joined by `:`. Without one: the ServiceAccount in `account` if
    `environ` says that this is a pod; else the files in $KUBECONFIG, else ~/.kube/config. `context`: one of the
    kubeconfig's; empty: its current context.
    """

    kubeconfig: str = ""
    context: str = ""
    account: Path = SERVICE_ACCOUNT
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)

    @property
    def in_cluster(self) -> bool:
        return not self.kubeconfig and not self.context and SERVICE_HOST_ENV_NAME in self.environ

    @property
    def files(self) -> str:
        return self.kubeconfig or self.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials as they were read: `configuration` is that of the Kubernetes client; `files`: what they came from.
    `cluster`: the server's URL and a digest of its CA certificates, since many clusters have one URL for their pods."""

    configuration: Any
    files: tuple[Path, ...]
    signature: Signature
    cluster: str

    @property
    def changed(self) -> bool:
        """Whether a file has been replaced since. A file that is missing for a moment has not."""
        now = _signature(self.files)
        return len(now) == len(self.signature) and now != self.signature


async def load(access: Access) -> Login:
    """Read the credentials. ConfigError names the file and what is wrong with it."""
    settings = client.Configuration()
    paths = _account_files(access) if access.in_cluster else _kubeconfigs(access)
    before = _signature(paths)  # a file that is replaced during the reading is read again
    try:
        if access.in_cluster:
            token, authority = map(str, paths)
            InClusterConfigLoader(token, authority, try_refresh_token=False, environ=dict(access.environ)).load_and_set(
                settings
            )
        else:
            await config.load_kube_config(
                access.files, access.context or None, client_configuration=settings, persist_config=False
            )
        cluster = _cluster(settings)
    except (config.ConfigException, OSError, yaml.YAMLError, LookupError, TypeError, ValueError) as error:
        where = access.account if access.in_cluster else access.files
        raise ConfigError(f"credentials for the Kubernetes API: {where}: {_reason(error)}") from error
    settings.disable_strict_ssl_verification = True  # as kubectl: many clusters' CAs lack fields that RFC 5280 wants
    named = (settings.ssl_ca_cert, settings.cert_file, settings.key_file)
    more = tuple(path for name in named if name and (path := Path(name)) not in paths)
    return Login(settings, (*paths, *more), (*before, *_signature(more)), cluster)


def _cluster(settings: Any) -> str:
    if not settings.ssl_ca_cert:
        return str(settings.host)
    return f"{settings.host} sha256:{hashlib.sha256(Path(settings.ssl_ca_cert).read_bytes()).hexdigest()}"


def _reason(error: Exception) -> str:
    """Without a YAML error's excerpt of the file, which may hold a token."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: is not YAML: {error.problem}"
    return f"{type(error).__name__}" if isinstance(error, TypeError | LookupError) else str(error)


def _account_files(access: Access) -> tuple[Path, ...]:
    return access.account / "token", access.account / "ca.crt"


def _kubeconfigs(access: Access) -> tuple[Path, ...]:
    paths = tuple(Path(name).expanduser() for name in access.files.split(os.pathsep) if name)
    if not any(path.exists() for path in paths):
        raise ConfigError(
            f"credentials for the Kubernetes API: {access.files}: no such file, and this is no pod of a cluster: "
            "give --kubeconfig FILE, or a directory of manifests with --source DIR"
        )
    return paths


def _signature(files: tuple[Path, ...]) -> Signature:
    found = []
    for path in files:
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found)
