"""The agent of a node: reads a source, keeps the cluster's state, has it enforced, records and answers.

run             the parts put together; supervise keeps agent and workers running
dataplane/      what is enforced: both pictures, and when they are published
flow_recorder   workers' records and the kernel's events into the ring of flows
api, report     the local socket and what it answers

Not here: what resources mean (cluster), what a policy says (policy), how rules are written (tproxy_rules).
"""
