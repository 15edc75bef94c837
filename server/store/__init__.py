"""Model files on disk: reading and checking GGUF headers."""
