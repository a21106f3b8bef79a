"""Fine-tuning: cross-encoders into teachers (``teach``), twins into students (``distill``)."""

from .distill import distill as distill
from .teach import teach as teach
from .pipeline import converted as converted
from .pipeline import student as student
from .pipeline import training_pairs as training_pairs
