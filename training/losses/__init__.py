"""The losses of BLIP-2's two stages.

Open itc_itm_itg.py first: the three losses of stage 1 as pure functions. stage1_losses.py computes them for a batch, in
one process or in several that share it; cached_embeddings.py computes the batch in chunks, which need less memory.
captioner_loss.py holds the loss of stage 2.

May import training/loop and distributed, and engine/blip2.
"""
