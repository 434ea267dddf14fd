"""Which learners fail on which groups of one's own features, and which captions or samples would help."""
