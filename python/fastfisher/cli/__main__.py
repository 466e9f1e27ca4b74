# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfisher.cli``."""

from __future__ import annotations

from fastfisher.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
