"""One file a kind of task: what an example is, its labels, its loss targets and its metric."""
