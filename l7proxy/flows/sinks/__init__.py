"""Where flows go: one module per kind of sink, all of them a `sink.Sink`, made by `registry` and fed by `feed`.

Not here: what a flow says.
"""
