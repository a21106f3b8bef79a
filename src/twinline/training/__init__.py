"""Fine-tuning: cross-encoders into teachers (``teach``), twins into students (``distill``)."""

from .distill import distill as distill
from .pipeline import converted as converted
from .pipeline import scorer_of as scorer_of
from .pipeline import student as student
from .pipeline import training_pairs as training_pairs
from .teach import teach as teach
