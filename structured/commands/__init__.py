"""The commands of `structured`, one file each, and what they share.

Heavy modules are imported inside the functions that need them, so that help comes at once.
"""
