"""The state of a cluster, from resources: who has which address and identity, which policies hold. Pure.

state            resources folded into one view for a node
pod_index        pods with their labels, addresses and identities, kept from view to view
identities       numbers for label sets and networks; identity_labels: which labels count
frontends        Services with their endpoints; names: what flows call an address
policy_status    policies into rules, and what became of each; secrets, audit, pattern_limits: what is done to them
memo             answers kept while what they were made from stays

Not here: sockets, files, clocks, the kernel's tables, and anything that one process of ours must tell another.
"""
