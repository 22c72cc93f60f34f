"""Every file suffix, magic number and Pillow format name by which qseek knows a picture, in one table.

This module only holds constants: anything may import it.
"""

from __future__ import annotations

RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"})
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
SHARD_SUFFIX_BY_FIRST_BYTES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}
"""Map the first bytes of a file to the suffix that tar shards give it."""

HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
# HEIC and RAW are named whether or not their extra is installed: decode says which extra is missing.
PHOTO_SUFFIXES = (
    HEIC_SUFFIXES
    | RAW_SUFFIXES
    | frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
)
