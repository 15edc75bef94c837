"""Stand-ins for programs that tests and benchmarks cannot count on having."""
