"""Flows: one record per evaluated connection or request, in the format of Hubble.

records   what workers and the NFLOG reader record on the hot path: small, addresses instead of names
event     what the ring holds: a flow, or how many were lost
enrich    makes a Hubble flow of a record, in the agent, with names and labels
ring      the ring buffer: every flow is written to it, every reader reads from it
template  JSON lines made from templates
filters   Hubble's filters, one function each
observer  answers a request for flows from the ring
sinks/    where flows are written: JSON lines, …

Not here: verdicts and cluster state. Names are passed in.
"""
