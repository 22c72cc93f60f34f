"""CapFilt: a captioner draws captions of photos, and a retrieval model selects the best of them.

Open capfilt.py first: the run that writes tar shards. caption_candidates.py draws and scores captions, photo_labels.py
turns class labels into captions, shard_tally.py counts the captions that were drawn and kept, and capfilt_config.py
holds the settings.

May import training/stages (teacher.py), loop and distributed, and of engine datasets, models, pictures and blip2.
"""
