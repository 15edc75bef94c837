"""The demonstration model: its training text, network, training, export and evaluation."""
