"""Runs on the nodes of a Ray cluster. The only door to Ray.

The command submits each group of runs as one task. If the node of a task sees the run folders, the task trains into
them; otherwise it trains into a temporary folder and sends the files to the command's machine. Ray places tasks and
reports lost ones; the runs of a lost task resume from their last checkpoint on a node that has room.
"""
