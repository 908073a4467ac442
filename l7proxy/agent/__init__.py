"""The agent of a node: reads a source, keeps the cluster state, enforces policies, records flows, serves the local API.

run             composition root; supervise keeps agent and workers running
dataplane/      what workers and kernel enforce, and when it is published
flow_recorder   turns workers' records and kernel events into flows in the ring
api, queries    the local socket and its methods; report makes the answers; client asks

Not here: meaning of resources (cluster), meaning of policies (policy), text of kernel rules (tproxy_rules).
"""
