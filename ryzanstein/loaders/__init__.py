"""From files to named read-only arrays."""
