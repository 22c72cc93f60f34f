"""Models by name: found, loaded and ready to be asked.

Open `loading.py` first: `load_model` finds a name through `catalogue` and `hub`, builds its network through
engine/checkpoints, and returns a RetrievalModel (photos and texts become vectors, pairs become match logits);
`load_captioner` returns a CaptionModel; what the two have in common is `loaded_model`. `caption_writers` writes
captions with either, `photo_encoder` is what indexing asks, `conversion` writes checkpoints in another layout, and
`bundled/` holds the weights that ship.

This room may import engine/checkpoints, engine/blip2 and the ground. It knows no index.
"""
