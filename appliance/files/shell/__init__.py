"""The commands of `culvert sftp`: `commands.py` is their table, `shell.py` runs a line of them."""
