"""`restore`: files of a snapshot back onto any file system, without a mount."""
