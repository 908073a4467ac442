"""The schemas of the Cilium kinds that l7proxy reads, written after Cilium's documentation.

Types are checked where every version of Cilium agrees. Unknown fields are kept on purpose: l7proxy reads each document
as it was written, and refuses by name what it cannot honour. A field that the API server drops silently, such as a
misspelt `toPort`, would leave a rule that allows more than its author meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import yaml

Schema = dict[str, Any]
HEAD: Final = (
    "# Made by `python -m deploy.helm.generate` from deploy/helm/crds.py, which says what the schema checks.\n"
)
TEXT: Final[Schema] = {"type": "string"}
YES_NO: Final[Schema] = {"type": "boolean"}


def some(properties: Mapping[str, Schema], **more: Any) -> Schema:
    """An object; unknown fields are kept."""
    kept = {"x-kubernetes-preserve-unknown-fields": True}
    return {"type": "object", **({"properties": dict(properties)} if properties else {}), **kept, **more}


def many(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


EXPRESSION: Final = some(
    {
        "key": TEXT,
        "operator": {"type": "string", "enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
        "values": many(TEXT),
    },
    required=["key", "operator"],
)
SELECTOR: Final = some(
    {"matchLabels": {"type": "object", "additionalProperties": TEXT}, "matchExpressions": many(EXPRESSION)}
)
PORT: Final = some(
    {"port": TEXT, "endPort": {"type": "integer", "minimum": 0, "maximum": 65535}, "protocol": TEXT},
    required=["port"],
)
HEADER: Final = some({"name": TEXT, "value": TEXT, "mismatch": TEXT, "secret": some({"name": TEXT, "namespace": TEXT})})
HTTP: Final = some(
    {"method": TEXT, "path": TEXT, "host": TEXT, "headers": many(TEXT), "headerMatches": many(HEADER)},
    description="A request that is allowed: all given fields must match.",
)
CIDR: Final = some({"cidr": TEXT, "cidrGroupRef": TEXT, "cidrGroupSelector": SELECTOR, "except": many(TEXT)})


def peers(word: str, *, allows: bool) -> Schema:
    """The rules of one direction. `word`: from or to. L7 rules exist where traffic is allowed only."""
    ports = some({"ports": many(PORT), **({"rules": some({"http": many(HTTP)})} if allows else {})})
    fields = {
        f"{word}Endpoints": many(SELECTOR),
        f"{word}Nodes": many(SELECTOR),
        f"{word}Entities": many(TEXT),
        f"{word}CIDR": many(TEXT),
        f"{word}CIDRSet": many(CIDR),
        "toPorts": many(ports),
        "icmps": many(some({})),
    }
    return many(some(fields))


def rule() -> Schema:
    fields = {
        "description": TEXT,
        "endpointSelector": SELECTOR,
        "nodeSelector": SELECTOR,
        "enableDefaultDeny": some({"ingress": YES_NO, "egress": YES_NO}),
        "ingress": peers("from", allows=True),
        "ingressDeny": peers("from", allows=False),
        "egress": peers("to", allows=True),
        "egressDeny": peers("to", allows=False),
        "labels": many(some({"key": TEXT, "value": TEXT, "source": TEXT})),
    }
    return some(fields, description="What is allowed and denied to the pods that endpointSelector selects.")


def status() -> Schema:
    condition = some(
        {
            "type": TEXT,
            "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
            "reason": TEXT,
            "message": TEXT,
            "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
            "lastTransitionTime": {"type": "string", "format": "date-time"},
        },
        required=["type", "status"],
    )
    by_type = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
    return some({"conditions": many(condition, **by_type)}, description="Whether the policy is valid, and enforced.")


def policy() -> Schema:
    several = many(some({}), description="Several rules in one object, each like `spec`.")
    return root({"spec": rule(), "specs": several, "status": status()})


def cidr_group() -> Schema:
    prefixes = many(TEXT, description="Prefixes, such as 192.0.2.0/24.")
    return root({"spec": some({"externalCIDRs": prefixes}, required=["externalCIDRs"])}, required=["spec"])


def root(properties: Mapping[str, Schema], **more: Any) -> Schema:
    fields = {"apiVersion": TEXT, "kind": TEXT, "metadata": {"type": "object"}, **properties}
    return {"type": "object", "properties": fields, **more}


def column(name: str, path: str, about: str, kind: str = "string") -> Schema:
    return {"name": name, "type": kind, "jsonPath": path, "description": about}


AGE: Final = column("Age", ".metadata.creationTimestamp", "Time since the policy was created.", "date")
COLUMNS: Final = (
    column("Valid", ".status.conditions[?(@.type=='Valid')].status", "Whether it can be read."),
    column("Enforced", ".status.conditions[?(@.type=='l7proxy.io/Enforced')].status", "Whether all nodes enforce it."),
    AGE,
    column("Message", ".status.conditions[?(@.type=='l7proxy.io/Enforced')].message", "On which nodes; else why not."),
)


def definition(
    kind: str, plural: str, short: Iterable[str], *, namespaced: bool, schema: Schema, columns: Iterable[Schema]
) -> Schema:
    has_status = "status" in schema["properties"]
    version = {
        "name": "v2",
        "served": True,
        "storage": True,
        **({"subresources": {"status": {}}} if has_status else {}),
        "additionalPrinterColumns": list(columns),
        "schema": {"openAPIV3Schema": schema},
    }
    names = {
        "kind": kind,
        "listKind": f"{kind}List",
        "plural": plural,
        "singular": kind.lower(),
        "shortNames": list(short),
        "categories": ["cilium", "ciliumpolicy"],
    }
    metadata = {
        "name": f"{plural}.cilium.io",
        "labels": {"app.kubernetes.io/part-of": "l7proxy"},
        "annotations": {"helm.sh/resource-policy": "keep"},
    }
    scope = "Namespaced" if namespaced else "Cluster"
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": metadata,
        "spec": {"group": "cilium.io", "scope": scope, "names": names, "versions": [version]},
    }


def definitions() -> list[Schema]:
    """The three CRDs."""
    return [
        definition(
            "CiliumNetworkPolicy",
            "ciliumnetworkpolicies",
            ("cnp", "ciliumnp"),
            namespaced=True,
            schema=policy(),
            columns=COLUMNS,
        ),
        definition(
            "CiliumClusterwideNetworkPolicy",
            "ciliumclusterwidenetworkpolicies",
            ("ccnp",),
            namespaced=False,
            schema=policy(),
            columns=COLUMNS,
        ),
        definition(
            "CiliumCIDRGroup",
            "ciliumcidrgroups",
            ("ccg",),
            namespaced=False,
            schema=cidr_group(),
            columns=(AGE,),
        ),
    ]


class _Dumper(yaml.SafeDumper):
    """Without anchors, which a reader of a long schema cannot follow."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def text(crd: Schema) -> str:
    return HEAD + yaml.dump(crd, Dumper=_Dumper, sort_keys=False, width=110)
