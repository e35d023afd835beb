"""Optimisers against each other on the same network, data and budget.

Task            a network, a loss and data; what every optimiser is given      task.py
Optimiser       how to take a step, and the grid its settings are searched on  optimisers.py
run(...)        one training under a budget → Run                              running.py
contest(...)    tasks × optimisers × seeds, each finished Run kept in a file   contest.py, store.py
standings(...)  Runs → what is reported: tables and plots                      standings.py, pictures.py
compare(...)    all of it for a model file: ``gncompile compare``              model_file.py
"""
