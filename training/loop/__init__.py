"""One training loop for every stage: optimizer, checkpoints, exact resume, log.

Open train_loop.py first. It trains a Task, which gives a model and the losses of a step. Everything random in a step
depends on (seed, step) alone, so that a resumed run repeats the same losses.

May import training/distributed, engine/models (devices.py, malloc.py) and the ground.
"""
