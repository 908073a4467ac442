"""Tells the cluster what its nodes enforce: conditions of Cilium's policies, Events for policies of other kinds.

    reconciler ► summary: what this node enforces ► lease of this node ┐
                                                                       ├► ledger ► conditions ► writer ► status, Events
    leases of all nodes (watched by the leader alone) ─────────────────┘
    leader lease ► election: which agent writes

`summary`, `ledger`, `conditions` and `election` are pure; `leases` and `writer` talk to the API server, `service`
runs them. Nothing here delays enforcement: all of it may fail, and the node enforces on.
"""
