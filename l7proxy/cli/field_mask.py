"""`observe --field-mask`: only some fields of a flow, as paths like `source.labels`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

import msgspec

from l7proxy.errors import ConfigError
from l7proxy.flows import field_mask, flow


def check(paths: Sequence[str]) -> None:
    """ConfigError for a path that names no field of a flow; only single messages have parts."""
    for path in paths:
        kind: Any = flow.Flow
        for name in path.split("."):
            found = {one.encode_name: one.type for one in msgspec.structs.fields(kind)} if kind else {}
            if name not in found:
                raise ConfigError(f'failed to construct field mask: invalid path "{path}" for message "flow.Flow"')
            kind = next((one for one in (found[name], *get_args(found[name])) if _is_message(one)), None)


def _is_message(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, flow.Message)


def applied(answers: Iterable[flow.Response], paths: Sequence[str]) -> Iterator[flow.Response]:
    """With only these fields of each flow. The response's own time and node stay."""
    masked = field_mask.build(paths)
    for answer in answers:
        if masked is None or answer.flow is None:
            yield answer
        else:
            yield msgspec.structs.replace(answer, flow=masked(answer.flow))
