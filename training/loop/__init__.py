"""The training loop of every stage: optimizer, checkpoints, log, and runs that go on exactly where they stopped.

Open train_loop.py first. It trains a TrainingTask, which gives a model and the losses of a step. Everything random in a
step depends on (seed, step) alone, so that a resumed run repeats the losses of a run that was never stopped.

May import training/distributed, engine/models (devices.py, malloc.py) and the ground.
"""
