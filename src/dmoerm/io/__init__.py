"""Reading and writing files: complete writes, locks, remote storage. No torch here."""
