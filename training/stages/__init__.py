"""What is trained: each stage has its config, its task and its run.

A model is made in this order: distillation.py (image encoder), text_half.py, stage1.py, stage2.py, finetuning.py. Open
stage1_config.py first, then stage1.py. A run begins from what starts.py and bert_start.py load; dry_run.py says what a
run would cost.

May import training/batches, losses, loop and distributed, and of engine datasets, models, checkpoints and blip2.
"""
