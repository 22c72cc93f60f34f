"""Keep the index on disk: photos, their files, texts and captions in LanceDB tables. Only this room knows lancedb.

Open store.py first: Store opens an index folder, reads it and writes it. manifest.py says what the index was made with,
writer_lock.py lets one process write, database.py opens one table at one version, schemas.py holds the Arrow schemas,
and each of photo_table.py, path_table.py, text_table.py and caption_table.py knows one table. live_photos.py knows
which photos have a file now.

This room may import the ground alone (engine/errors, types, atomic, progress).
"""
