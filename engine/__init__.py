"""Answer a question: models, indexes, search and evaluation lie here, and the ground that all rooms stand on.

Open search/searcher.py first: it answers a text with photos. errors.py, types.py, atomic.py, progress.py, wording.py
and processors.py are the ground, which every room may import. This folder imports none of indexer, training and ui.
"""
