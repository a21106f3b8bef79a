"""Twinline distils a slow cross-encoder into a fast twin encoder that runs in linear time."""
