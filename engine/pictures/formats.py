"""Every file suffix, magic number and Pillow format name by which qseek knows a picture, in one table.

This module only holds constants: anything may import it.
"""

from __future__ import annotations

PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF")
"""Formats by Pillow's names that are always tried; HEIC comes from an extra."""

HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
"""Bytes 8 to 12 of a HEIC file, which follow `ftyp`."""

PILLOW_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
)
HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
RAW_SUFFIXES = frozenset({".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".pef", ".raf", ".rw2", ".srw"})
PHOTO_SUFFIXES = PILLOW_SUFFIXES | HEIC_SUFFIXES | RAW_SUFFIXES
"""Suffixes of the files that are indexed. HEIC and RAW are named whether or not their extra is installed: opening such
a file says which extra is missing."""

SHARD_PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
"""Suffixes, without a dot, of the pictures in tar shards. Of a sample with several pictures, the first counts."""

SHARD_SUFFIX_BY_FIRST_BYTES = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "webp"}
"""The suffix that tar shards give a file, by its first bytes."""
