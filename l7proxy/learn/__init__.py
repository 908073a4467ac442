"""Writes least-privilege policies from flows: who talked to whom, on which ports, with which requests.

observation   what one flow says: both ends, the direction that judged it, the port, the request
recording     reads recorded flows: lines of JSON as l7proxy and Hubble write them, also compressed
labels        chooses the labels by which a policy selects pods
paths         turns the paths of requests into anchored patterns
traffic       counts observations by subject, direction, peer and port
earlier       what an earlier policy allows already
policies      CiliumNetworkPolicies from traffic, with counts and callers as comments
text          YAML with comments; no text of a flow can leave its string or its comment

Not here: verdicts. `simulate.replay` judges flows by policies.
"""
