"""The batch of a training step, from pictures that are read in every step or from patches that are computed once.

Open batch_source.py first: the form that every batch has. picture_stream.py reads and crops pictures when a step needs
them; mixture.py decides which set gives a sample, sample_order.py which sample of the set, crops.py what is cut from
its picture. encoded_views.py instead encodes every picture once, before training, by a frozen encoder. pair_draws.py
gives the random numbers of a pair. A batch depends on (seed, step) alone.

May import training/loop and distributed, and of engine datasets, pictures, models and blip2.
"""
