"""Strangers' Python, tested where it can do no harm and where it cannot say how it was tested.

    launch ══control══► keeper, process 1 of its namespaces ──fork──► judge ──fork──► answer, process 1 of its own
      │                   │ kills everything when the job is over      ▲  └──calls──►   │
      └───── job ─────────┼────────────────────────────────────────────┘  ◄──values──┘
      ◄── a byte a test ──┘

``launch`` runs in a reward process, everything else in an interpreter of its own that sees only the standard library:
``inside`` is its life, ``root`` what it sees, ``limits`` what it may, ``judge`` the tests, ``answer`` the code that is
tested, ``wire`` how values travel between the two.
"""
