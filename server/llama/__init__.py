"""The only code that calls llama.cpp; it owns all native memory."""
