"""The lab: a small kubelet, CNI and kube-proxy on network namespaces. Manifests in, real packets.

Nodes and pods are namespaces of this machine; what runs on the nodes is the real agent. Nothing here is imported by the
product: the lab is a door, like the command line. There is no lab daemon: each command reads the lab's directory,
works under its lock and writes back, so that a crash leaves a record of all that must be cleared away.
"""
