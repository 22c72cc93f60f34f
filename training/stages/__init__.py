"""Train the parts of a model in stages, each with its config, its task and its run.

A model is made in this order: distillation.py (image encoder), text_half.py, stage1.py, stage2.py, finetuning.py. Open
stage1_config.py first, then stage1.py. starts.py and bert_start.py load what a run starts from; dry_run.py outlines a
run and estimates what it costs.

May import training/batches, losses, loop and distributed, and of engine datasets, models, checkpoints and blip2.
"""
