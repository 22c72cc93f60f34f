"""Find models by their names, load them, and use them.

Open `loading.py` first: `load_model` finds a name through `catalogue` and `hub`, builds its network through
engine/checkpoints, and returns a RetrievalModel (photos and texts become vectors, pairs become match logits);
`load_captioner` returns a CaptionModel. `loaded_model` is the base of both. `photo_captioners` writes captions with
either, `photo_encoder` serves indexing, `conversion` writes checkpoints in another layout, and `bundled/` holds the
weights that come with qseek.

This room may import engine/checkpoints, engine/blip2 and the ground. It knows nothing of indexes.
"""
