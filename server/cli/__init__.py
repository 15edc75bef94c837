"""The ``llmspell`` command: one file per command group."""
