"""Several processes that train one model as one process would with their joined batch.

Open world.py first: who this process is. gathering.py exchanges rows between processes, with gradient where it is
needed; wrapping.py spreads a network over them by DDP or FSDP.

Imports only engine/errors.
"""
