"""Which models are in memory: loading, leases and the engine of each resident model."""
