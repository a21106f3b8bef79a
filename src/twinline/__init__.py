"""Twinline distils a slow cross-encoder into a fast twin encoder that runs in linear time.

The public names are imported when they are first used, so that ``import twinline`` is instant.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .conversion import convert as convert
    from .conversion import transfer as transfer
    from .encoder import Encoder as Encoder
    from .errors import TwinlineError as TwinlineError
    from .options import DistillOptions as DistillOptions
    from .options import TeachOptions as TeachOptions
    from .options import TransferOptions as TransferOptions
    from .teacher import Teacher as Teacher
    from .training.distill import distill as distill
    from .training.teach import teach as teach

_HOMES = {
    "DistillOptions": "options",
    "Encoder": "encoder",
    "TeachOptions": "options",
    "Teacher": "teacher",
    "TransferOptions": "options",
    "TwinlineError": "errors",
    "convert": "conversion",
    "distill": "training",
    "teach": "training",
    "transfer": "conversion",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'twinline' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
