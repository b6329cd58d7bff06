"""Mounts directories of SFTP servers, by the kernel's FUSE protocol."""
