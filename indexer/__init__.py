"""Turn photos on disk into an index on disk.

Open index_run.py first: it does one run, from opening the index to writing the FAISS files. scan.py finds files,
change_plan.py compares them with the index, decode.py and decode_pool.py read them, build.py puts photos into the
store, caption_run.py puts captions there, and reindex.py replaces an index by a new one.

This room may import engine/index, engine/vectors, engine/pictures, engine/models and the ground. Worker processes
import decode.py, so it must not import torch or lancedb.
"""
