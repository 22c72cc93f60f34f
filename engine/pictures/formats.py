"""List every file suffix, magic number and Pillow format name by which qseek knows a picture.

This module holds constants only, so every other module may import it.
"""

from __future__ import annotations

PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
"""Names of the formats that Pillow always tries; HEIC needs an extra package."""

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Values of the four bytes that follow `ftyp` in a HEIC file (bytes 8 to 12)."""

PILLOW_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"})
PHOTO_SUFFIXES = PILLOW_SUFFIXES | HEIC_SUFFIXES | RAW_SUFFIXES
"""Suffixes of the files that are indexed. HEIC and RAW belong to them even without their extra package: opening such a
file then says which package is missing."""

SHARD_PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Suffixes, without a dot, of the pictures in tar shards. When a sample has several pictures, the first is taken."""

SHARD_SUFFIX_BY_FIRST_BYTES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}
"""Suffix that a file gets in a tar shard, by the first bytes of the file."""
