"""The batch of a training step, whichever way it is made.

Open batch_source.py first: the form that every batch has. picture_stream.py reads and crops pictures as they are
needed; mixture.py decides which set gives a sample, sample_order.py which sample of it, crops.py what is cut.
encoded_views.py instead reads every picture once, before training, by an encoder that is frozen. pair_draws.py gives
the random numbers of a pair. A batch depends on (seed, step) alone.

May import training/loop and distributed, and of engine datasets, pictures, models and blip2.
"""
