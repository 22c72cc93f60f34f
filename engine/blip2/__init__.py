"""BLIP-2: the model, readable beside the paper. Import the modules; this file stays empty of torch."""
