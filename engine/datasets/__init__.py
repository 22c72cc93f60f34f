"""Read sets of captioned pictures and of questions, as people keep them, for evaluation and for training.

Tars, JSON files and folders of several layouts all become the types of captioned_pictures.py. Open captioned_sets.py
first: its `open_set` decides which reader opens a set. question_files.py reads questions of every layout, and
question_sets.py turns them into a training set. Each of the other files knows one kind of file, finds pictures by
name, or decodes many pictures.

Imports engine/pictures and the ground (engine/errors, types, atomic, progress, wording), and nothing of training.
"""
