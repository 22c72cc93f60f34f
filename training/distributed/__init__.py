"""Several processes that train a model as a single process would with their joined batch.

Open world.py first: which of the processes this one is. gathering.py exchanges rows between processes, with gradient
where it is needed; wrapping.py spreads a network over them by DDP or FSDP.

Imports only engine/errors.
"""
