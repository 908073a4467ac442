"""Flows: one record per judged thing, in Hubble's shape.

records   what the judging places write: small, named by address, made on the hot path
enrich    a flow as Hubble knows it, made by the agent with names and labels
ring      the ring every flow passes and every reader reads
template  lines of JSON with what varies filled in
redaction what flows may show beyond the least
filters   Hubble's filters, one function each
sinks/    where flows go: JSON lines, …

Not here: verdicts, and what a cluster knows: names are handed in.
"""
