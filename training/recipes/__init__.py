"""Recipes: for each model that can be trained, one function that returns its complete config.

Open mini_recipes.py first. The recipes of the paper are in blip2_recipes.py (stage 1, retrieval) and
language_recipes.py (stage 2, captions, questions). recipe_catalogue.py lists all of them by name, and
recipe_settings.py changes single settings as `--set` asks.

May import every other room of training.
"""
