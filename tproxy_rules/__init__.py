"""Renders the desired state of a transparent policy proxy into kernel rules and applies them.

`Desired` is what the kernel must enforce. A `Backend` applies it in one transaction and can verify that it still holds.
Nothing here imports l7proxy or depends on Kubernetes: identities are numbers, endpoints are addresses.

desired    the desired state (frozen values)
digest     its canonical form and its digest
identity_cache   identities by prefix, cached between states
validate   refuses an invalid desired state before a tool is started
marks      the two mark bits, the routing table and the names by which a new process recognises our kernel state
backend    the interface of all backends: Backend, Installed, KernelError
simplify   an equivalent table with fewer tiers and stages (stages)
evaluate   the semantics of `desired` as a pure function
nft/       the nftables backend; shapes and networks build the sets of both backends
iptables/  the iptables-restore and ipset backend, for nodes without nftables
fake       an in-memory backend with the validation of the real ones
routes     the policy routing that delivers marked packets to local sockets, through pyroute2
revoke     ends tracked connections that a new state refuses: which entries (evaluate), and their deletion (conntrack)
detect     chooses the backend that this node supports
nflog      verdict events from the kernel, over raw netlink
"""
