"""Kernel state for a transparent policy proxy: a picture in, rules out.

`Desired` is what the kernel shall look like; a `Backend` makes it so in one transaction and can tell whether it still
is. This package imports nothing of l7proxy and knows no Kubernetes: identities are numbers, endpoints are addresses.

desired    the picture (frozen values)
digest     its canonical form and its name
validate   what is refused before a tool is started
marks      the two mark bits, the routing table and the names by which a fresh process knows our state as ours
backend    the seam: Backend, Installed, KernelError
simplify   the same table in fewer tiers and stages (stages)
evaluate   the law of `desired` as a pure function
nft/       the nftables backend; shapes and networks make the sets of both
iptables/  the same with iptables-restore and ipset, where nftables is not to be had
fake       a backend that keeps state and refuses what a kernel would refuse
routes     the policy routing that hands marked packets to local sockets, through pyroute2
revoke     what a new picture takes away from tracked connections: what must go (evaluate) and its end (conntrack)
detect     which backend this machine can have
nflog      verdict events from the kernel, over raw netlink
"""
