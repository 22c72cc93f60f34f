"""What is trained: each file holds the config, the task and the run of one stage.

A model is made in this order: distillation.py (image encoder), text_half.py, stage1.py, stage2.py, finetuning.py. Open
stage1.py first. A run begins from what starts.py and bert_start.py load; dry_run.py says what a run would cost.

May import training/batches, losses, loop and distributed, and of engine datasets, models, checkpoints and blip2.
"""
