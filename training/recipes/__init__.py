"""Recipes: for each model that can be trained, one function that returns its complete config.

Open mini_recipes.py first. The paper's recipes are in blip2_recipes.py (stage 1, retrieval) and language_recipes.py
(stage 2, captions, questions). recipe_catalogue.py lists all of them by name, recipe_settings.py changes single
settings as `--set` asks, and trainers.py runs a recipe or outlines it.

May import every other room of training.
"""
