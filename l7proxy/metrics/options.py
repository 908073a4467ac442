"""Reads which metrics of flows are wanted, as Hubble writes it: `flow drop dns:labelsContext=source_pod;query`.

Names are separated by blanks; the options of one follow a colon and are separated by semicolons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from l7proxy.errors import ConfigError

IDENTIFIERS: Final = (
    "identity", "namespace", "pod", "pod-name", "dns", "ip", "reserved-identity", "workload", "workload-name", "app",
)  # fmt: skip
"""What `sourceContext` and `destinationContext` may show of an end."""
_OF_AN_END: Final = ("ip", "pod", "namespace", "workload", "workload_kind", "app")
CONTEXT_LABELS: Final = (
    *(f"source_{one}" for one in _OF_AN_END),
    *(f"destination_{one}" for one in _OF_AN_END),
    "traffic_direction",
)
"""What `labelsContext` may list, in the order in which the labels are written."""
END_OPTIONS: Final = (
    "sourceContext", "sourceEgressContext", "sourceIngressContext",
    "destinationContext", "destinationEgressContext", "destinationIngressContext",
)  # fmt: skip
FLAGS: Final[Mapping[str, tuple[str, ...]]] = {
    "flow": (),
    "drop": (),
    "tcp": (),
    "icmp": (),
    "dns": ("query", "ignoreAAAA"),
    "http": ("exemplars",),
    "httpV2": ("exemplars",),
    "port-distribution": (),
    "flows-to-world": ("any-drop", "port", "syn-only"),
    "policy": (),
    "cilium": (),
}
"""The names, and the options of each that are on or off."""
NO_CONTEXT: Final = frozenset({"cilium"})


@dataclass(frozen=True, slots=True)
class Metric:
    """One configured name. `ends`: option of END_OPTIONS → identifiers, of which the first with a value is shown."""

    name: str
    labels: tuple[str, ...] = ()
    ends: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    flags: frozenset[str] = frozenset()


def parse(text: str) -> tuple[Metric, ...]:
    """ConfigError names the metric, the option and the allowed values."""
    found: dict[str, Metric] = {}
    for word in text.split():
        metric = _metric(word)
        if metric.name in found:
            raise ConfigError(f"{metric.name}: is listed twice")
        found[metric.name] = metric
    if "http" in found and "httpV2" in found:
        raise ConfigError("http and httpV2 have metrics of one name: choose one of them")
    return tuple(found.values())


def _metric(word: str) -> Metric:
    name, colon, rest = word.partition(":")
    if name not in FLAGS:
        raise ConfigError(f"unknown metric {name!r:.80}: must be one of {', '.join(FLAGS)}")
    labels: tuple[str, ...] = ()
    ends: dict[str, tuple[str, ...]] = {}
    flags: set[str] = set()
    for option in filter(None, rest.split(";")) if colon else ():
        key, _, value = option.partition("=")
        if key in FLAGS[name]:
            if _switch(name, key, value):
                flags.add(key)
        elif key == "labelsContext" and name not in NO_CONTEXT:
            labels = _labels(name, value)
        elif key in END_OPTIONS and name not in NO_CONTEXT:
            ends[key] = _identifiers(name, key, value)
        else:
            raise ConfigError(f"{name}: unknown option {key!r:.80}: must be one of {_allowed(name)}")
    return Metric(name, labels, ends, frozenset(flags))


def _allowed(name: str) -> str:
    contexts = () if name in NO_CONTEXT else ("labelsContext", *END_OPTIONS)
    return ", ".join((*FLAGS[name], *contexts)) or "none"


def _switch(name: str, key: str, value: str) -> bool:
    if value not in ("", "true", "false"):
        raise ConfigError(f"{name}: {key}: must be true or false, not {value!r:.80}")
    return value != "false"


def _labels(name: str, value: str) -> tuple[str, ...]:
    wanted = value.split(",")
    for one in wanted:
        if one not in CONTEXT_LABELS:
            raise ConfigError(
                f"{name}: labelsContext: unknown label {one!r:.80}: must be one of {', '.join(CONTEXT_LABELS)}"
            )
    return tuple(one for one in CONTEXT_LABELS if one in wanted)


def _identifiers(name: str, key: str, value: str) -> tuple[str, ...]:
    wanted = tuple(value.split("|"))
    for one in wanted:
        if one not in IDENTIFIERS:
            raise ConfigError(f"{name}: {key}: unknown identifier {one!r:.80}: must be one of {', '.join(IDENTIFIERS)}")
    return wanted
