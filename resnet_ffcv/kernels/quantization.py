"""JPEG's quantisation tables, and what a scaled inverse DCT takes in their stead."""

import numpy as np

# ITU-T T.81, tables K.1 and K.2: [vertical, horizontal frequency]
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
COLOUR = np.full((8, 8), 99)
COLOUR[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def quantization_tables(quality: int) -> np.ndarray:
    """int64 (2, 8, 8): of luma and colour, [vertical, horizontal frequency], by libjpeg's rule.

    jcparam.c: jpeg_quality_scaling and jpeg_add_quant_table, limited to 8 bits.
    """
    scale = 5_000 // quality if quality < 50 else 200 - 2 * quality
    tables = np.stack([LUMA, COLOUR])
    scaled: np.ndarray = np.clip((tables * scale + 50) // 100, 1, 255)
    return scaled
