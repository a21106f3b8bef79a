"""The words that the tests' own tokenizer knows."""

WORDS = ["a", "man", "woman", "plays", "the", "guitar", "piano", "on", "green", "grass", "dogs",
         "run", "fast", "in", "rain", "and", "sun"]  # fmt: skip
