# SPDX-License-Identifier: Apache-2.0
"""Benches that `fastfisher bench` runs: each checks its result, then times it beside its floor."""
