"""The nftables backend: a picture as tables `inet l7proxy` and `bridge l7proxy`.

backend          apply, verify, repair; as the difference to the last picture where that is proved to be in force
inet, bridge     the two tables; policy, limits: their parts; text, table: how rules and sets are written
state, watch     what is in the kernel, and who changes it; probe: what this kernel can do
identity_cache   identities by prefix, kept from picture to picture

Not here: what a picture means (desired, evaluate), routes.
"""
