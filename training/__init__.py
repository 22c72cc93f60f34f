"""Make the models: what is trained, by which losses, on which batches, in one loop.

Open recipes/mini_recipes.py first, then stages/stage1.py. A room may import those after it: recipes, then stages and
capfilt, then batches and losses, then loop, then distributed; all of them may import engine.
"""
