"""What became of a decoded sample."""

WHOLE = 0
OUTSIDE_FILE = 1
WRONG_SIZE = 2
BAD_ROW = 3
BAD_GROUP = 4
BAD_JPEG = 5
OTHER_JPEG_SIZE = 6
BAD_WINDOW = 7

MEANING = {
    WHOLE: "whole",
    OUTSIDE_FILE: "its data lies outside the file",
    WRONG_SIZE: "its data has not the size that its row implies",
    BAD_ROW: "its row names a form that this version does not know, or an empty image",
    BAD_GROUP: "a group of its blocks makes no sense",
    BAD_JPEG: "its JPEG is damaged",
    OTHER_JPEG_SIZE: "its JPEG has not the size that its row says",
    BAD_WINDOW: "the window lies outside the image",
}
