"""Parts of the benchmark ``federation`` in which learners really train."""
