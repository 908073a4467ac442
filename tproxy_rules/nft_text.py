"""The words of the nft language that both of our tables are written with. Pure text, no decisions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tproxy_rules.desired import Settings
from tproxy_rules.marks import LOG_QUEUE, LOG_SNAPLEN, Told, Way, log_prefix


def table(family: str, name: str, blocks: Iterable[str], *, comment: str = "") -> str:
    """A whole table in the place of whatever bore its name: declare, delete, define, all in one transaction.

    Deleting and adding in two transactions leaks packets between them; declaring first makes the deletion succeed when
    there is nothing yet.
    """
    note = f'\tcomment "{comment}"\n' if comment else ""
    body = "\n".join(blocks)
    return f"{absent(family, name)}table {family} {name} {{\n{note}{body}}}\n"


def absent(family: str, name: str) -> str:
    """No such table."""
    return f"table {family} {name}\ndelete table {family} {name}\n"


def chain(name: str, rules: Iterable[str], *, hook: str = "", priority: int = 0, kind: str = "filter") -> str:
    """A chain; with a hook, a base chain whose policy is accept: what we refuse, we refuse by rule."""
    base = [f"type {kind} hook {hook} priority {priority}; policy accept;"] if hook else []
    return f"\tchain {name} {{\n" + "".join(f"\t\t{line}\n" for line in (*base, *rules)) + "\t}\n"


def named_set(name: str, kind: str, elements: Sequence[str], *, interval: bool = False, of: str = "type") -> str:
    """A set, or with ` : ` in its kind a map."""
    sort = "map" if " : " in kind else "set"
    flags = "\t\tflags interval\n" if interval else ""
    joined = ",\n\t\t\t".join(elements)
    listed = f"\t\telements = {{\n\t\t\t{joined}\n\t\t}}\n" if elements else ""
    return f"\t{sort} {name} {{\n\t\t{of} {kind}\n{flags}{listed}\t}}\n"


def identity(number: int) -> str:
    """A 32-bit number as the major:minor, in hex, of `meta priority`."""
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


def log(settings: Settings, told: Told, way: Way, endpoint: int) -> str:
    """A log statement under two rate limits; what is over them is judged the same, only not told.

    No endpoint may take more than a tenth of the events, so that a pod that floods cannot hide what others do.
    """
    share = max(settings.log_rate // 10, 1)
    refused = told not in (Told.ALLOW, Told.STEER)
    return (
        f"limit rate {share}/second burst {share} packets limit name {'refused' if refused else 'passed'} "
        f'log prefix "{log_prefix(told, way, endpoint)}" group {settings.nflog_group} '
        f"snaplen {LOG_SNAPLEN} queue-threshold {LOG_QUEUE}"
    )


def limits(settings: Settings) -> str:
    """The node-wide halves of `log`: refusals and passes do not take each other's place."""
    rate = settings.log_rate
    return "".join(
        f"\tlimit {name} {{\n\t\trate {rate}/second burst {rate} packets\n\t}}\n" for name in ("passed", "refused")
    )
