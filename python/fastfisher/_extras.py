# SPDX-License-Identifier: Apache-2.0
"""Optional packages: imported when first used, with a message that says how to install them."""

from __future__ import annotations

import importlib
from typing import Any

from fastfisher.errors import FastfisherError

__all__ = ["MissingExtraError", "require"]


class MissingExtraError(FastfisherError, ImportError):
    """A package of an extra is absent; the message names the command that installs it."""


def require(module: str, *, purpose: str, install: str = "'fastfisher[report]'") -> Any:
    """Import an optional module.

    Parameters
    ----------
    module : str
        Dotted name of the module.
    purpose : str
        What needs it, the subject of the error message.
    install : str
        What to give to ``pip install``.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    MissingExtraError
        The package is not installed.

    Examples
    --------
    >>> require("json", purpose="this example").dumps([1])
    '[1]'
    >>> require("no_such_package", purpose="this example")
    Traceback (most recent call last):
        ...
    fastfisher._extras.MissingExtraError: this example needs no_such_package: pip install
    'fastfisher[report]'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        # A package that is there but lacks one of its own dependencies must say which one.
        missing = (error.name or package).partition(".")[0]
        because = "" if missing == package else f" (it misses {missing})"
        raise MissingExtraError(
            f"{purpose} needs {package}{because}: pip install {install}"
        ) from error
