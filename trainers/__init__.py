"""The learner: from the trajectories topic to announced weights. It never imports Beam.

    trajectories → stream → planner → batch → losses → engine → publish → commit → weights

``learn.py`` is the entry and tells the whole story.
"""
