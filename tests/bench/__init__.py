"""`make bench`: Culvert's speed and size as ratios to OpenSSH's and Dropbear's in the same run."""
