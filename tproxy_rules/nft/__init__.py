"""The nftables backend: renders a desired state as the tables `inet l7proxy` and `bridge l7proxy`.

backend          apply, verify, repair; writes only the difference if the last state is verified to be unchanged
inet, bridge     the two tables; policy, limits: their parts; text, table: the syntax of rules and sets
state, watch     what is in the kernel, and which commits changed it; probe: what this kernel supports

Not here: the meaning of a desired state (desired, evaluate), and routes.
"""
