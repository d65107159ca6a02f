"""Published methods, one file each; see method.py."""
