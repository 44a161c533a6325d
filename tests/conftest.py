"""For every test: no network, no forked tokenizer threads."""

import os

# Before any library reads them. A test that reaches for the Hub fails at once instead of hanging.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
