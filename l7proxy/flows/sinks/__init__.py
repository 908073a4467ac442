"""Where flows go: one module per kind of sink, all of them a `sink.Sink`. What a flow says is decided before."""
