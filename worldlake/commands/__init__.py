"""One file for each command; `worldlake.cli` lists them. A file is imported when its command runs."""
