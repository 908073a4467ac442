"""The lab: a small kubelet, CNI and kube-proxy on network namespaces. Manifests in, real packets.

Nodes and pods are namespaces of this machine; the nodes run the real agent. The product imports nothing from here: the
lab is a user interface, like the command line. There is no lab daemon: each command reads the lab's directory, holds
its lock and writes the changes, so that after a crash the directory lists all that must be removed.
"""
