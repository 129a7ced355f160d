"""Training: recipes, the loop, optimiser groups, schedules, averages, checkpoints, run folders.

``mmlab.training.run.run(Recipe(...))`` does what ``mmlab train`` does.
"""
