"""Generated from `flow.proto`."""
