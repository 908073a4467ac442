"""The iptables backend: the same semantics through iptables-restore, ipset and ebtables, for nodes without nftables.

backend   apply, verify, repair; rules, bridge, sets: the rules as text

Not here: the meaning of a desired state (desired, evaluate). What both backends need of nftables is in `nft`.
"""
