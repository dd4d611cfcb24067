"""Properties are about results: how long an example takes, on a busy machine or with an import in it, is not one."""

from hypothesis import settings

settings.register_profile("results", deadline=None)
settings.load_profile("results")
