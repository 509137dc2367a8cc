"""Guesses at the tokens to come, which a step checks all at once.

Whoever guesses never decides: the sampler draws every token from the model's own logits, and a
guess only saves the step that would have computed them later (docs/decisions/0026).
"""
