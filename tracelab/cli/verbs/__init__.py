"""What each verb does, a file a verb: read its options, call the Python function of the same name.

A file is loaded when its verb is asked for, and with it no more than that verb needs.
"""
