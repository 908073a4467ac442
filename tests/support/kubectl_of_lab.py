"""The few commands of kubectl that deploy/smoke/run.sh uses, with a running lab as the cluster.

`python -m tests.support.kubectl_of_lab LAB ARGUMENTS`. Pods that must not be on the backend's node are put on node-2,
all others on node-1.
"""

from __future__ import annotations

import sys
from pathlib import Path

from l7proxy.lab import userns
from l7proxy.lab.execute import execute
from l7proxy.lab.manifests import Key, Manifest, read
from l7proxy.lab.state import Lab


def main(lab: Lab, arguments: list[str]) -> int:
    with userns.entered(lab):
        return _run(lab, arguments)


def _run(lab: Lab, arguments: list[str]) -> int:
    namespace = ""
    if arguments[0] == "-n":
        namespace, arguments = arguments[1], arguments[2:]
    match arguments:
        case ["get", "namespace", name, *_]:
            _show_namespace(lab, name)
        case ["get", "customresourcedefinition" | "ciliumnetworkpolicies" | "events", *_] | ["wait", *_]:
            pass
        case ["get", "nodes", *_]:
            print("\n".join(f"{name}::" for name in lab.load().nodes))
        case ["get", "pods" | "services" as kind, *_]:
            _show_addresses(lab, namespace, "Pod" if kind == "pods" else "Service")
        case ["apply", "-f", file]:
            from l7proxy.lab import lifecycle  # only here: `exec` starts in half the time without it

            lifecycle.apply(lab, [_placed(one) for one in read([Path(file)])])
        case ["exec", *options, "--", "sh" | "curl" as program] if options[0] == "-i":
            return execute(lab, f"{namespace}/{options[1]}", [program])
        case ["exec", pod, "--", *command]:
            return execute(lab, f"{namespace}/{pod}", command)
        case ["delete", "namespace", *names]:
            from l7proxy.lab import lifecycle

            lifecycle.delete(lab, [key for key in lab.store.load() if key.namespace in names or _is(key, names)])
        case _:
            sys.exit(f"error: the lab has no kubectl {' '.join(arguments)}")
    return 0


def _is(key: Key, names: list[str]) -> bool:
    return key.kind == "Namespace" and key.name in names


def _show_namespace(lab: Lab, name: str) -> None:
    for key, manifest in lab.store.load().items():
        if _is(key, [name]):
            ours = manifest.document["metadata"].get("labels", {}).get("l7proxy.io/smoke", "")
            print(f"{name}={ours}")


def _show_addresses(lab: Lab, namespace: str, kind: str) -> None:
    for key, manifest in lab.store.load().items():
        if (key.kind, key.namespace) == (kind, namespace):
            spec, status = manifest.document["spec"], manifest.document.get("status", {})
            print(key.name, *([spec["clusterIP"]] if kind == "Service" else [status["podIP"], spec["nodeName"]]))


def _placed(manifest: Manifest) -> Manifest:
    if manifest.key.kind != "Pod":
        return manifest
    spec = manifest.document["spec"]
    node = "node-2" if "podAntiAffinity" in spec.get("affinity", {}) else "node-1"
    return manifest.rewritten({**manifest.document, "spec": {**spec, "nodeName": node}})


if __name__ == "__main__":
    sys.exit(main(Lab(sys.argv[1]), sys.argv[2:]))
