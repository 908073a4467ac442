"""Messages of Hubble's API, generated from the .proto files beside them: `python -m tests.protos`."""
