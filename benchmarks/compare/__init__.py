"""Side-by-side measurements of OpenAI-compatible servers; ``compare_servers.py`` is the command line."""
