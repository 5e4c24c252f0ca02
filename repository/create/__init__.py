"""`snapshot create`: files of this machine straight into the repository, without a mount."""
