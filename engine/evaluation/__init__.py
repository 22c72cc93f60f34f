"""Measure how good a model is, by the measures of the papers.

Open retrieval_protocol.py first for recall of photos and captions: itc_ranking.py and pair_matching.py are its two
halves, and retrieval_cache.py stores what a stopped run has done. Open writing_run.py for captions and answers of a
whole set, which results_files.py reads and writes in the official layouts. The measures are pure functions: recall.py,
caption_metrics.py and vqa_accuracy.py; spice.py runs the program of SPICE's authors.

May import engine/models, engine/datasets, engine/blip2 and the ground.
"""
