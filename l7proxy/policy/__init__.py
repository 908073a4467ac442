"""Evaluates policy: from a document to a verdict, by lang, compile, decide and match.

lang/     one document in one language → neutral rules (or a PolicyError that names the field)
rules     the content of a document, independent of its language
compile   rules × endpoints × identities → one EndpointPolicy per endpoint; pure, order-independent
tables    the result of compile: values that are sent to the kernel and to the workers
decide    the only function that gives verdicts, for the proxy, `policy trace` and flow attribution
combine   the decisions of both directions → one verdict
match     HTTP rules against requests, by RE2

No module here uses a socket, a clock, an event loop or a file.
"""
