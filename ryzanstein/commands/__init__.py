"""The commands of `ryzanstein` that are about a model's files, one module each."""
