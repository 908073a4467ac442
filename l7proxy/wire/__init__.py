"""The wire: protocols as values. Bytes in, heads and body extents out.

One strict reading of HTTP/1 (RFC 9112): what two servers could read two ways is refused with its reason, as PeerError.
Nothing here knows a policy, a connection or a clock.
"""
