"""The vocabulary every layer shares: specs, requests, events, errors and ports (standard library only)."""
