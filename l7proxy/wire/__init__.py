"""Protocol parsers and writers: bytes in, heads and body lengths out.

One strict reading of HTTP/1 (RFC 9112): input that two servers could parse differently is rejected with PeerError.
No module here uses a policy, a connection or a clock.
"""
