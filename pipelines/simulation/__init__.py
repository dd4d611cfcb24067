"""A seeded population that talks to a gateway as people do, and what came of it.

application    what they ask, what they think of answers, what they would have said: the seam
chat           questions, and a preference that changes in the middle
preferences    which answers somebody likes: checkable rules by name
support        customers' messages, and agents who know the right desk and the policy
population     who there is: what each likes, how often they err, how long they take
talk           one user's questions and judgements, over HTTP
results        the share of liked answers over time, and how long the model took to adapt
run            all of it

And one that follows a run over Kafka, without a gateway, and knows the right answers of a task:

translators    what each of its users thinks of an answer, and says
rating         all of it
"""
