"""What a cluster decides: which replica serves a request. Sans-I/O like the rest of control."""
