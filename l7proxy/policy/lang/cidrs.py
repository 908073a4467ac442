"""Parses CIDRs of Cilium documents: prefixes, prefixes with exceptions, and CIDR groups by name or label."""

from __future__ import annotations

import re
from ipaddress import IPv6Network, ip_network
from typing import Final

from l7proxy.model.net import Network, within
from l7proxy.policy.lang import selectors
from l7proxy.policy.lang.document import Document
from l7proxy.policy.lang.fields import Field, quoted
from l7proxy.policy.rules import CidrGroupPeer, CidrPeer

_CHOICES: Final = ("cidr", "cidrGroupRef", "cidrGroupSelector")
_PREFIX: Final = re.compile(r"[0-9A-Fa-f:.]{2,45}/(0|[1-9][0-9]{0,2})")
MAPPED: Final = IPv6Network("::ffff:0:0/96")


def cidr(field: Field, document: Document) -> CidrPeer:
    """An item of fromCIDR or toCIDR."""
    if not field.text():
        field.fail("IP must be specified")
    return CidrPeer(prefix(field), reach=document.options.cidr_reach)


def cidr_set(field: Field, document: Document) -> CidrPeer | CidrGroupPeer:
    """An item of fromCIDRSet or toCIDRSet. Exceptions from a CIDR group need not be inside it."""
    found = field.mapping((*_CHOICES, "except"))
    chosen = [name for name in _CHOICES if name in found and found[name].value != ""]
    if not chosen:
        field.fail("one of cidr, cidrGroupRef, or cidrGroupSelector is required")
    if len(chosen) > 1:
        field.fail("more than one of cidr, cidrGroupRef, or cidrGroupSelector may not be set")
    (name,) = chosen
    reach = document.options.cidr_reach
    holes = [(each, prefix(each)) for each in found["except"].items()] if "except" in found else []
    excepts = tuple(sorted({hole for _, hole in holes}, key=lambda one: (one.version, one)))
    if name == "cidrGroupRef":
        return CidrGroupPeer(found[name].text(), excepts=excepts, reach=reach)
    if name == "cidrGroupSelector":
        document.selects(found[name])
        selector = selectors.selector(selectors.requirements(found[name]))
        return CidrGroupPeer(selector=selector, excepts=excepts, reach=reach)
    network = prefix(found[name], "CIDRRule")
    for each, hole in holes:
        if not within(hole, network):
            wide, narrow = found[name].text(), each.text()
            each.fail(f"allow CIDR prefix {wide} does not contain exclude CIDR prefix {narrow}")
    return CidrPeer(network, excepts, reach)


def prefix(field: Field, what: str = "CIDR:") -> Network:
    """A prefix with a numeric length. Host bits are cleared; an address without a length is rejected."""
    text = field.text()
    head = f"unable to parse {what} {quoted(text)}"
    try:
        if not _PREFIX.fullmatch(text):
            raise ValueError("expected an address and a prefix length, as 10.0.0.0/8 or 2001:db8::/32")
        network = ip_network(text, strict=False)
    except ValueError as error:
        field.fail(f"{head}: {error}")
    if within(network, MAPPED):
        field.fail(f"{head}: write IPv4-mapped addresses as IPv4")
    return network
