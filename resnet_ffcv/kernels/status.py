"""What became of a decoded sample."""

WHOLE = 0
OUTSIDE_FILE = 1
WRONG_SIZE = 2
BAD_ROW = 3
BAD_GROUP = 4
BAD_JPEG = 5
OTHER_JPEG_SIZE = 6
BAD_WINDOW = 7
TOO_LARGE = 8
TOO_MUCH_WORK = 9
TOO_MANY_SCANS = 10
NO_MEMORY = 11
CHECKSUM = 12

MEANING = {
    WHOLE: "whole",
    OUTSIDE_FILE: "its data lies outside the file",
    WRONG_SIZE: "the size of its data is not what its row implies",
    BAD_ROW: "its row names an unknown form, or an empty image",
    BAD_GROUP: "a group of its blocks is damaged",
    BAD_JPEG: "its JPEG is damaged",
    OTHER_JPEG_SIZE: "its JPEG is not of the size in its row",
    BAD_WINDOW: "the window lies outside the image",
    TOO_LARGE: "it has more pixels than max_pixels allows",
    TOO_MUCH_WORK: "decoding it takes more memory than max_memory allows",
    TOO_MANY_SCANS: "its JPEG has more than 100 scans",
    NO_MEMORY: "there is not enough memory to decode it",
    CHECKSUM: "its page differs from its checksum",
}
