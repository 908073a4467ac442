"""From a policy document to a verdict: lang > compile > decide > match, all on rules and tables.

lang/     one document in one language → neutral rules (or a PolicyError that names the field)
rules     what a document says, free of its language
compile   rules × endpoints × identities → one EndpointPolicy per endpoint; pure, order-independent
tables    what compile makes: values that travel to the kernel and to the workers
decide    the one door for verdicts, used by the proxy, by `policy trace` and by flow attribution
combine   both directions' decisions into one verdict
match     HTTP rules against requests, by RE2

No module here touches a socket, a clock, a loop or a file.
"""
