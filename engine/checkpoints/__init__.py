"""Checkpoints: files become networks and networks become files, in three layouts (qseek's, transformers', LAVIS').

Reading goes `retrieval_reading` or `captioner_reading` (a folder) or `lavis_files` (a .pth file) -> a source in
`checkpoint_sources` -> `building` -> a network of engine/blip2 whose every tensor fits. Writing goes through `saving`,
or `transformers_export` for transformers. Open `layout.py` first: it names the files of a checkpoint folder.

Nothing here knows a model's name, the user's folders or the network. This room may import engine/blip2 and the ground
(engine/errors, types, atomic, progress).
"""
