"""Hubble's filters for events: what the fixed fields of a template's flows answer is remembered per template.

Most filters ask for verdicts, pods, labels, methods: the same for all flows of one template. So a flow is made only
where the answer depends on a field that varies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from l7proxy.flows import filters
from l7proxy.flows.batch import NO_STATUS
from l7proxy.flows.event import Event
from l7proxy.flows.filters import Predicate
from l7proxy.flows.flow import Flow
from l7proxy.flows.template import FlowTemplate, TemplatedFlow
from l7proxy.model.cache import remember

Keep: TypeAlias = Callable[[Event], bool]
"""Lost events are always kept: who reads the rest must know that it is incomplete."""
VARYING: Final = frozenset(
    {"uuid", "source_port", "destination_port", "http_status_code", "http_path", "http_url", "trace_id"}
)
"""Fields of a filter whose answer differs among the flows of one template: by uuid, l4, status, URL and trace id."""
REMEMBERED: Final = 1024
"""Templates whose answers one filter keeps."""


def everything(_: Event) -> bool:
    """Compared by identity: no event need be asked."""
    return True


def build(request: Mapping[str, Any] | None) -> Keep:
    """A filter of `{"whitelist": [filter…], "blacklist": [filter…]}`. ConfigError names the invalid field."""
    allowed, denied = filters.lists(request)
    if not allowed and not denied:
        return everything
    return _Filter([_Split(one) for one in allowed], [_Split(one) for one in denied]).keeps


class _Split:
    """One filter: all of the fixed fields must match, and all of the varying ones."""

    __slots__ = ("fixed", "varying")

    def __init__(self, fields: filters.Fields) -> None:
        self.fixed = [predicate for name, predicate in fields if name not in VARYING]
        self.varying = [predicate for name, predicate in fields if name in VARYING]

    def matches(self, flow: Flow) -> bool:
        return all(one(flow) for one in self.fixed) and all(one(flow) for one in self.varying)


class _Filter:
    def __init__(self, allowed: list[_Split], denied: list[_Split]) -> None:
        self._allowed = allowed
        self._denied = denied
        self._requests: dict[FlowTemplate, bool | Predicate] = {}
        self._responses: dict[FlowTemplate, bool | Predicate] = {}

    def keeps(self, event: Event) -> bool:
        """Hot."""
        if isinstance(event, TemplatedFlow):
            known = self._requests if event.status == NO_STATUS else self._responses
            answer = known.get(event.shape)
            if answer is None:
                answer = remember(known, event.shape, self._of_template(event.model), REMEMBERED)
            return answer if isinstance(answer, bool) else answer(event.flow())
        flow = event.flow()
        return flow is None or self._wanted(flow)

    def _wanted(self, flow: Flow) -> bool:
        allowed = not self._allowed or any(one.matches(flow) for one in self._allowed)
        return allowed and not any(one.matches(flow) for one in self._denied)

    def _of_template(self, model: Flow) -> bool | Predicate:
        """The answer for all flows of the template, or what to ask of each."""
        allowed = [one.varying for one in self._allowed if all(fixed(model) for fixed in one.fixed)]
        denied = [one.varying for one in self._denied if all(fixed(model) for fixed in one.fixed)]
        if (self._allowed and not allowed) or not all(denied):  # a filter without varying fields matches all of them
            return False
        if not self._allowed or not all(allowed):
            allowed = []
        if not allowed and not denied:
            return True
        return lambda flow: (not allowed or _any(allowed, flow)) and not _any(denied, flow)


def _any(wanted: list[list[Predicate]], flow: Flow) -> bool:
    return any(all(one(flow) for one in predicates) for predicates in wanted)
