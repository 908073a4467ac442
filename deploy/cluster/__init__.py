"""A real Kubernetes of several nodes on one Linux machine, from package registries alone.

Each node is a set of namespaces of this machine (network, mounts, PIDs, host name, IPC, cgroups) in which the real
programs run: kubelet, containerd, kube-proxy, CNI plugins. One more such machine, `control`, runs etcd and the
control plane, and is the switch that joins the nodes. The host's own network, sysctls and files stay as they are.

`python -m deploy.cluster up | status | kubectl … | down`, or `make cluster` and `make cluster-down`.
"""
