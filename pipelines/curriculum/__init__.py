"""A source of prompts that watches what becomes of them: tasks by weight, and of each what can be learned from now.

    directory of the user ──pools──► prompts of each task ──selection──► the next ones ──writer──► {run}.prompts
                                              ▲                                                        │
    {run}.trajectories, dead-letters ──history┘◄─── numbers, draws ──────── at the start ──────────────┘
    {run}.admission ──history──► how many of its prompts wait to be admitted: room for so many more

pools       from tasks and files to prompts with weights
settings    what can be said about how prompts are drawn
selection   what is known of a prompt, and which one is drawn next
history     what the log says of the prompts
writer      a batch of prompts in one transaction
source      all of it together, until there are enough or it is told to end
report      shares, pass rates, what is too easy and too hard
"""
