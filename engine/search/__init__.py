"""Answer one question: text to photos, photo to photos, photo to texts, or an order of given photos.

Open searcher.py first: the class Searcher has a method for each kind of question. retrieval.py finds candidates by ITC
and by captions (caption_search.py), reranking.py matches them by ITM and keeps keys in key_cache.py, hit_captions.py
writes a caption for each hit, and search_notes.py words the notes for the person who asks.

This room may import engine/vectors, engine/index, engine/models, engine/pictures, engine/blip2 and the ground.
"""
