"""Generated from `peer.proto`."""
