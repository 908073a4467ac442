"""Verdicts, directions and drop reasons for packets, connections and requests, with Hubble's names and numbers."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Verdict(IntEnum):
    """flow.Verdict of Hubble's API, with the protobuf numbers."""

    UNKNOWN = 0
    FORWARDED = 1
    DROPPED = 2
    ERROR = 3
    AUDIT = 4
    REDIRECTED = 5


class Direction(IntEnum):
    """flow.TrafficDirection, seen from the endpoint whose policy is evaluated."""

    UNKNOWN = 0
    INGRESS = 1
    EGRESS = 2

    @property
    def word(self) -> str:
        return self.name.lower()


BOTH: Final = (Direction.INGRESS, Direction.EGRESS)


class Action(IntEnum):
    """What a compiled entry does. The higher number takes precedence (Cilium's precedence byte).

    PASS leaves the decision to the next tier (admin policies, Calico).
    """

    PASS = 0
    ALLOW = 1
    REDIRECT = 154
    DENY = 255


class DropReason(IntEnum):
    """flow.DropReason: the subset of Hubble's numbers that a policy proxy uses."""

    UNKNOWN = 0
    INVALID_SOURCE_MAC = 130
    INVALID_SOURCE_IP = 132
    POLICY_DENIED = 133  # no rule allows it
    INVALID_PACKET_DROPPED = 134
    UNKNOWN_L4_PROTOCOL = 142
    INVALID_IDENTITY = 171
    PROXY_REDIRECTION_NOT_SUPPORTED_FOR_PROTOCOL = 180
    POLICY_DENY = 181  # a deny rule matched


class Protocol(IntEnum):
    """IP protocol numbers (IANA) that policies name."""

    ICMP = 1
    TCP = 6
    UDP = 17
    ICMPV6 = 58
    SCTP = 132
