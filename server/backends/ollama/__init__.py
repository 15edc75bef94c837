"""The Ollama daemon behind this server: where it is, how to speak with it, how to start it."""
