"""Which sequences run, on which pages, in which order. Policy only: the arithmetic is native."""
