"""Hubble's gRPC API on this node: what `hubble`, Hubble Relay and Hubble UI ask a node of Cilium for.

Reads the flow ring; nothing is encoded while nobody listens. The agent imports this package only when it serves the
API: grpcio and protobuf are optional dependencies.
"""
