# SPDX-License-Identifier: Apache-2.0
"""The examples in the docstrings of the installed package."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import fastfisher

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(fastfisher.__path__, "fastfisher.")
    if not module.name.endswith("__main__") and not module.name.startswith("fastfisher._bench")
)


@pytest.mark.parametrize("name", ["fastfisher", *MODULES])
def test_examples_run(name: str) -> None:
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=flags)
    assert failed == 0
