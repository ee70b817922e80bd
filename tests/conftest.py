import os

from hypothesis import settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("shared", deadline=None, max_examples=40)  # a busy machine is no failure
settings.load_profile("shared")
