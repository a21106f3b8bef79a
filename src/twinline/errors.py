"""What Twinline raises when the user can mend the cause."""

from importlib import import_module
from types import ModuleType


class TwinlineError(ValueError):
    """A user's mistake, told in one sentence: the file, row or option, and the remedy.

    The command line prints the sentence without a traceback and exits with status 2.
    """


class MissingExtra(TwinlineError, ImportError):  # noqa: N818 (it names what to install)
    """A library that only one extra needs is not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import ``module``; where it is not installed, name the ``extra`` that brings it.

    Raises:
        MissingExtra: ``module``, or a library it needs in turn, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"{error.name or module} is not installed: pip install 'twinline[{extra}]'"
        ) from error
