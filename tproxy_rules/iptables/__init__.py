"""The iptables backend: the same law by iptables-restore, ipset and ebtables, where nftables is not to be had.

backend   apply, verify, repair; rules, bridge, sets: what is written

Not here: what a picture means (desired, evaluate). What both backends need of nftables is in `nft`.
"""
