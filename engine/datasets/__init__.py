"""Captioned sets and questions as people keep them, read for evaluation and for training.

Tars, JSON files and folders of several layouts all become the types of captioned_pictures.py. Open captioned_sets.py
first: its `open_set` decides which reader opens a set. question_files.py reads questions of every layout, and
question_sets.py makes them a set to learn from. The other files each know one kind of file, find pictures by name, or
decode many of them.

Imports engine/pictures and the ground (engine/errors, types, atomic, progress), and nothing of training.
"""
