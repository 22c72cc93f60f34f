"""Answer one question: text to photos, photo to photos, photo to texts, or an order of given photos.

Open searcher.py first: the class Searcher has a method for each kind of question. retrieval.py finds candidates by ITC
and by captions (caption_search.py), reranking.py matches them by ITM and holds what it computed in key_cache.py,
hit_captions.py writes a caption for each hit, and search_notes.py words what the person should know.

May import engine/vectors, engine/index, engine/models, engine/pictures and the ground.
"""
