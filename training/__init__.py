"""Train the models: what is trained, with which losses, on which batches, in one loop.

Open recipes/mini_recipes.py first, then stages/stage1.py. A room may import the rooms that come after it in this
order: recipes, stages and capfilt, batches and losses, loop, distributed. All of them may import engine.
"""
