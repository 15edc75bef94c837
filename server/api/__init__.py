"""The HTTP surface: the only FastAPI code."""
