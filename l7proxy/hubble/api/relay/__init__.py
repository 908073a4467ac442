"""Generated from `relay.proto`."""
