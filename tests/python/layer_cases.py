# SPDX-License-Identifier: Apache-2.0
"""The lists of layers that every Gram is tried on."""

from __future__ import annotations

from layer_forms import C, D, E, LayerCase, S

# Unless said otherwise, layers of one case share n, m and c only.
LAYER_CASES = [
    # shared weights
    LayerCase("shared-one-position", 7, 5, 3, (S(1, 11, 13, True),)),
    LayerCase("shared-two-positions", 23, 9, 7, (S(2, 17, 31, True),)),
    LayerCase("shared-five-positions", 23, 11, 7, (S(5, 17, 31),)),
    LayerCase("shared-64-positions", 6, 5, 3, (S(64, 17, 31, True),)),
    LayerCase("shared-long", 3, 2, 1, (S(300, 5, 4, True),)),
    LayerCase("shared-other-positions", 8, 6, 2, (S(5, 9, 7, True, t=12),)),
    LayerCase("shared-whole-vectors", 7, 5, 3, (S(20, 32, 13, True), S(17, 48, 3, True))),
    LayerCase("shared-whole-vectors-long", 3, 2, 2, (S(300, 16, 21, True),)),
    LayerCase("shared-wide", 3, 2, 2, (S(3, 301, 9), S(3, 9, 301, True))),
    LayerCase("shared-one-of-all", 1, 1, 1, (S(1, 1, 1),)),
    LayerCase("shared-blocks", 100, 40, 7, (S(4, 6, 5, True),)),
    LayerCase("shared-many-outputs", 3, 2, 130, (S(3, 4, 7, True),)),
    # convolutions
    LayerCase("conv1d", 7, 5, 3, (C(3, (20,), 5, (3,), padding=(1,), bias=True),)),
    LayerCase("conv1d-strided", 7, 5, 3, (C(4, (23,), 6, (5,), (3,), (2,), (2,), bias=True),)),
    LayerCase("conv2d", 6, 4, 3, (C(3, (8, 8), 5, (3, 3), padding=(1, 1), bias=True),)),
    LayerCase("conv2d-one-by-one", 9, 4, 7, (C(17, (3, 4), 31, (1, 1), bias=True),)),
    LayerCase("conv2d-one-by-one-strided", 5, 4, 2, (C(6, (7, 6), 4, (1, 1), (2, 3)),)),
    LayerCase("conv2d-strided", 6, 4, 3, (C(3, (9, 11), 5, (3, 2), (2, 3), (1, 0), bias=True),)),
    LayerCase("conv2d-padded-wide", 5, 4, 2, (C(2, (4, 5), 3, (3, 3), (1, 2), (4, 3), bias=True),)),
    LayerCase("conv2d-dilated", 5, 4, 2, (C(3, (9, 9), 4, (3, 2), (1, 1), (2, 1), (2, 3)),)),
    LayerCase(
        "conv2d-everything",
        5,
        4,
        3,
        (C(6, (10, 9), 4, (3, 3), (2, 1), (2, 1), (1, 2), groups=2, bias=True),),
    ),
    LayerCase("conv2d-groups", 6, 5, 2, (C(6, (5, 5), 9, (3, 3), groups=3, bias=True),)),
    LayerCase(
        "conv2d-depthwise",
        6,
        5,
        3,
        (C(7, (6, 6), 7, (3, 3), padding=(1, 1), groups=7, bias=True),),
    ),
    LayerCase("conv2d-depthwise-multiplied", 4, 3, 2, (C(5, (5, 5), 15, (3, 3), groups=5),)),
    LayerCase("conv2d-whole-input", 9, 5, 3, (C(3, (4, 4), 17, (4, 4), bias=True),)),
    LayerCase(
        "conv2d-other-extents",
        4,
        5,
        2,
        (C(3, (6, 5), 4, (3, 3), padding=(1, 1), bias=True, space2=(4, 9)),),
    ),
    LayerCase("conv2d-blocks", 100, 33, 7, (C(2, (4, 4), 3, (3, 3), padding=(1, 1), bias=True),)),
    LayerCase("conv2d-many-outputs", 2, 3, 130, (C(2, (3, 3), 3, (2, 2), bias=True),)),
    LayerCase("conv2d-off-the-tile", 23, 6, 7, (C(17, (3, 3), 31, (2, 2), bias=True),)),
    LayerCase("conv2d-large-image", 3, 2, 1, (C(3, (32, 30), 8, (3, 3), padding=(1, 1)),)),
    LayerCase(
        "conv3d",
        4,
        3,
        2,
        (C(2, (4, 5, 3), 4, (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2), bias=True),),
    ),
    LayerCase(
        "conv3d-grouped", 3, 2, 2, (C(4, (3, 4, 4), 6, (3, 3, 3), padding=(1, 1, 1), groups=2),)
    ),
    # explicit
    LayerCase("explicit", 9, 7, 3, (E(57),)),
    LayerCase("explicit-one", 5, 4, 1, (E(1),)),
    LayerCase("explicit-wide", 5, 3, 2, (E(5003),)),
    LayerCase("explicit-blocks", 101, 30, 7, (E(19),)),
    LayerCase("explicit-many-outputs", 3, 2, 130, (E(33),)),
    # separable cotangents
    LayerCase("separable-shared", 9, 7, 10, (S(6, 17, 31, True, separable=True),)),
    LayerCase("separable-shared-one-output", 9, 7, 1, (S(6, 17, 5, True, separable=True),)),
    LayerCase("separable-shared-one-position", 7, 4, 5, (S(1, 8, 9, separable=True),)),
    LayerCase("separable-shared-positions", 5, 6, 3, (S(4, 8, 9, True, separable=True, t=7),)),
    LayerCase("separable-many-outputs", 3, 2, 130, (S(5, 4, 7, True, separable=True),)),
    LayerCase(
        "separable-conv2d",
        6,
        5,
        10,
        (C(3, (7, 6), 8, (3, 3), padding=(1, 1), bias=True, separable=True),),
    ),
    LayerCase(
        "separable-conv2d-one-output",
        6,
        5,
        1,
        (C(4, (7, 6), 6, (3, 2), (2, 1), (1, 1), groups=2, bias=True, separable=True),),
    ),
    LayerCase("separable-conv1d", 5, 3, 4, (C(3, (12,), 5, (4,), (2,), separable=True),)),
    LayerCase(
        "separable-blocks",
        70,
        20,
        10,
        (C(3, (3, 3), 4, (2, 2), bias=True, separable=True),),
    ),
    # mixed
    LayerCase(
        "network",
        23,
        7,
        7,
        (
            C(3, (6, 6), 5, (3, 3), padding=(1, 1), bias=True),
            C(5, (6, 6), 5, (3, 3), padding=(1, 1), groups=5),
            C(5, (3, 3), 8, (1, 1), bias=True, separable=True),
            S(4, 9, 11, True),
            E(13),
            D(17, 31, True),
            D(31, 7),
        ),
    ),
    LayerCase("shared-and-dense", 13, 6, 4, (S(7, 10, 9, True), D(40, 9, True), S(2, 30, 3))),
    LayerCase("conv-and-shared", 5, 4, 3, (C(2, (6,), 3, (3,)), S(5, 4, 4, separable=True))),
    LayerCase("conv-and-explicit", 6, 4, 3, (C(3, (6,), 3, (3,), bias=True), E(40), E(3))),
    LayerCase("many-layers", 5, 4, 2, (S(3, 4, 4, True), C(2, (4, 4), 2, (2, 2)), E(5)) * 8),
    # one sample, empty
    LayerCase(
        "one-sample", 1, 3, 4, (S(3, 5, 6, True), C(2, (4, 4), 3, (3, 3), bias=True), E(9), D(3, 4))
    ),
    LayerCase("no-samples", 0, 0, 2, (S(3, 5, 6, True), C(2, (4, 4), 3, (3, 3)), E(9))),
    LayerCase("no-second-samples", 3, 0, 2, (S(3, 5, 6, True), C(2, (4, 4), 3, (3, 3)), E(9))),
    LayerCase(
        "no-outputs",
        3,
        2,
        0,
        (S(3, 5, 6, True), C(2, (4, 4), 3, (3, 3)), E(9), S(2, 3, 4, separable=True)),
    ),
    LayerCase("no-positions", 3, 2, 2, (S(0, 5, 6, True),)),
    LayerCase("no-positions-beside-others", 3, 2, 2, (S(0, 5, 6, True), S(3, 4, 2), D(3, 2))),
    LayerCase("no-positions-on-the-left", 3, 2, 2, (S(0, 5, 6, True, t=4),)),
    LayerCase("no-positions-separable", 3, 2, 2, (S(0, 5, 6, True, separable=True),)),
    LayerCase("no-inputs", 3, 2, 2, (S(4, 0, 6, True), C(0, (4,), 3, (2,), bias=True))),
    LayerCase("no-inputs-no-bias", 3, 2, 2, (S(4, 0, 6), C(0, (4,), 3, (2,)))),
    LayerCase("no-units", 3, 2, 2, (S(4, 5, 0, True), C(2, (4,), 0, (2,), bias=True))),
    LayerCase("no-units-separable", 3, 2, 2, (S(4, 5, 0, True, separable=True),)),
    LayerCase("no-parameters", 3, 2, 2, (E(0),)),
    LayerCase("kernel-does-not-fit", 3, 2, 2, (C(2, (3, 5), 3, (4, 2), (2, 2), bias=True),)),
    LayerCase("empty-image", 3, 2, 2, (C(2, (0, 4), 3, (1, 1), bias=True), E(3))),
    LayerCase("image-of-padding", 3, 2, 2, (C(2, (0, 4), 3, (2, 1), padding=(1, 0), bias=True),)),
]
BY_ID = {case.id: case for case in LAYER_CASES}
