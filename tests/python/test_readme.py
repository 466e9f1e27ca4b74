# SPDX-License-Identifier: Apache-2.0
"""The README's Python examples run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["numpy", "torch", "fisher", "optimisers"])
def test_example_runs(example):
    exec(compile(example, str(README), "exec"), {})


def test_there_are_four_examples_of_about_fifteen_lines():
    assert len(EXAMPLES) == 4
    assert all(len(example.splitlines()) <= 20 for example in EXAMPLES)
