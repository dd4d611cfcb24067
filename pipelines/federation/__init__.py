"""What surrounds a federation's coordinator: ``audit.py`` checks its promises, ``rehearse.py`` is ``--dry-run``."""
