"""What `ryzanstein bench` is made of: tests, timing, the machine's limits, reports."""
