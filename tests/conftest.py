import os
import signal

from hypothesis import settings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
settings.register_profile("shared", deadline=None, max_examples=40)  # a busy machine is no failure
settings.load_profile("shared")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # what runs in the background ignores Ctrl-C, and hands that down
    signal.signal(signal.SIGINT, signal.default_int_handler)
