"""Read and write checkpoints: files become networks and networks become files, in the layouts of qseek, transformers,
LAVIS.

Open `layout.py` first: it names the files of a checkpoint folder. `retrieval_reading` and `captioner_reading` open a
folder, and `lavis_files` a .pth file; each returns a source of `checkpoint_sources`, of which `building` makes a
network of engine/blip2 whose every tensor fits. `saving` writes a folder, and `transformers_export` one for
transformers.

Nothing here knows the name of a model, the folders of the user, or the internet. This room may import engine/blip2 and
the ground (engine/errors, types, atomic, progress).
"""
