"""Data files, one a profile: the numbers each model family wants. `node/profile.py` says what each field means."""
