"""Finding the fastest safe configuration on the node that will train: what can be chosen
(space.py), what a trial measured (observation.py), what is best (score.py), what a candidate will
cost (cost.py), what to try next (strategies.py), and the loop around them (search.py).
"""
