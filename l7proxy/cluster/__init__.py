"""Builds the cluster state from resources: addresses, identities, endpoints, Services, active policies. Pure.

state            combines all resources into one view per node
pod_index        pods with their labels, addresses and identities, updated incrementally
identities       identity numbers for label sets and networks; identity_labels: which labels count
frontends        Services with their backends; names: names of addresses in flows
policy_status    reads policies into rules, with a status each; secrets, audit, pattern_limits: later passes over rules
derived          the graph of derived values: each computed again only if an input changed

Not here: sockets, files, clocks, kernel tables, messages between processes.
"""
