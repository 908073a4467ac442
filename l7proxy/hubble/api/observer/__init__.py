"""Generated from `observer.proto`."""
