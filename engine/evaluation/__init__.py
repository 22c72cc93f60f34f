"""How good a model is, by the measures of the papers.

Open retrieval_protocol.py first for recall of photos and captions: itc_ranking.py and pair_matching.py are its two
halves, retrieval_cache.py keeps what a stopped run has done. Open writing_run.py for captions and answers of a whole
set, which results_files.py reads and writes in the official layouts. The measures are pure functions: recall.py,
caption_metrics.py, spice.py and vqa_accuracy.py.

May import engine/models, engine/datasets, engine/blip2 and the ground.
"""
