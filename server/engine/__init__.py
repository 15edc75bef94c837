"""Continuous batching: sequences, scheduling, prefix cache, sampling and detokenization (no asyncio, no llama_cpp)."""
