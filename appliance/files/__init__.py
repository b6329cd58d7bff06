"""Files on a server: the SFTP client, and copies in both directions (scp and sftp)."""
