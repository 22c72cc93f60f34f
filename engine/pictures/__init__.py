"""Turn the bytes of a file into an upright RGB picture, and the picture into the square that the encoder reads.

Open opening.py first: it reads a file, chooses the reader and says why a file cannot be read. pillow_files.py and
raw_files.py are the two readers, exif.py turns pictures upright, squares.py makes the square, picture_batches.py reads
many pictures in threads, and formats.py lists every suffix that qseek knows.

This room may import engine/errors, types, atomic and progress. The worker processes of indexing import it, so it must
not import torch or lancedb.
"""
