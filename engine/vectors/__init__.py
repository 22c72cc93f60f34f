"""Find the exact nearest vectors. Only this room knows FAISS.

Open slot_index.py first: it searches one FAISS index for each slot; slot_bounds.py holds the bounds that make the
result exact. segments.py keeps rows on the CPU, gpu_slots.py on a GPU, segment_files.py on disk. table_indexes.py opens
the indexes that follow the store's photos, texts and captions.

This room may import engine/index and the ground (engine/errors, types, atomic, progress). The FAISS files are a cache:
whatever is wrong with them, they are built again from the store.
"""
