"""Runs on the nodes of a Ray cluster. The only door to Ray.

The command submits each group of runs as one task. A task trains into the run's own folder where its node sees that
folder, and else into one of its own, whose files it brings to the command's machine as they come. Ray places tasks and
says which are lost; what a lost one was at goes on from its last checkpoint, on whatever node has room.
"""
