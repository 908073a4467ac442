"""Hubble's gRPC API on this node: what `hubble`, Hubble Relay and Hubble UI ask a node of Cilium for.

Reads the flow ring; nothing is encoded while nobody listens. The agent imports this package only when it serves the
API: grpcio and protobuf are optional dependencies.
"""

import os

# Read when grpc is imported. Its core writes a line of its own form to standard error for each failed handshake: any
# pod that reaches the port could fill the log.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
