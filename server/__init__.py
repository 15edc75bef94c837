"""llmspell-server: one OpenAI-compatible HTTP API over the models that run on your own hardware."""

__version__ = "0.1.0"
