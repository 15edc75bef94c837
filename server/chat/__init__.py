"""Chat templates: structure to prompt text."""
