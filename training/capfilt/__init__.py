"""CapFilt: captions that a captioner draws for photos, of which the best by a retrieval model are kept.

Open capfilt.py first: the run that writes tar shards. caption_candidates.py draws and scores captions, photo_labels.py
makes captions of class labels, shard_tally.py counts what became of them, and capfilt_config.py holds the settings.

May import training/stages (teacher.py), loop and distributed, and of engine datasets, models, pictures and blip2.
"""
