"""Who of the waiting is next. `queue.py` holds the shared heap; each other file is one rule."""
