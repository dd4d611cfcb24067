"""A learner that trains every record that comes, also of groups that it has trained."""

import sys

if "learn" in sys.orig_argv:
    from trainers.planner import Planner, has_variance

    def judge(self, arrival):
        return None if has_variance(arrival.rewards) else "zero_variance"

    Planner._judge = judge
