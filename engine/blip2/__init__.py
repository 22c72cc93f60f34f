"""BLIP-2's networks, to be read beside the paper (arXiv:2301.12597); they know no file, no checkpoint and no index.

Open `retriever.py` first (stage 1: the ITC, ITM and ITG heads over `vision` and `qformer`), then `captioner.py` (stage
2: a frozen language model behind the Q-Former). `config.py` says what a network is made of, `masks.py` draws figure 2,
`layers.py` has the only attention function. `pixels`, `wordpiece` and `language_tokens` turn pictures and texts into
tensors. `itg_decoding` writes captions with the ITG head, and `generation` holds the options of writing.

This room may import the ground alone (engine/errors, types, atomic, progress).
"""
